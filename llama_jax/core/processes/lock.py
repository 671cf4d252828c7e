"""One writer of a directory."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote


class WriterLock:
    """Keeps other processes from writing to a directory until `close` or the end of this process, however it ends.

    Remote paths, and file systems without locks, are not protected.
    """

    def __init__(self, directory: epath.PathLike, name: str) -> None:
        """Take the lock, a file `lock` in the directory, which must exist.

        Args:
            name: of the directory, for the message, such as `--run_dir runs/a`.

        Raises:
            UserError: another process holds it.
        """
        self._file: IO[str] | None = None
        if is_remote(directory):
            return
        file = (Path(directory) / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            option = name.split()[0]
            raise UserError(f"{name}: in use by {holder}; wait for it to end, or choose another {option}") from None
        except OSError:
            pass  # no locks here, as on some network and bucket mounts
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def close(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()
            self._file = None
