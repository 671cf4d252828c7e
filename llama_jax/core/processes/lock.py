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
        self._path = Path(directory) / "lock"
        while True:
            self._is_new = not self._path.exists()
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                option = name.split()[0]
                raise UserError(f"{name}: in use by {holder}; wait for it to end, or choose another {option}") from None
            except OSError:
                break  # no locks here, as on some network and bucket mounts
            if _is_at(file, self._path):
                break
            file.close()  # its last holder removed it in between
        file.seek(0)
        self._before = file.read()
        self._file = file
        self._write(f"process {os.getpid()} on {socket.gethostname()}\n")

    def close(self, *, as_found: bool = False) -> None:
        """Let others write.

        Args:
            as_found: leave the file as it was, or none where there was none.
        """
        if self._file is None:
            return
        if as_found and self._is_new:
            self._path.unlink(missing_ok=True)
        elif as_found:
            self._write(self._before)
        self._file.close()
        self._file = None

    def _write(self, content: str) -> None:
        assert self._file is not None
        self._file.truncate(0)
        self._file.write(content)
        self._file.flush()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
