"""Text files that survive a kill, a full disk and a bucket that cannot append. Independent of their contents."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from etils import epath

from llama_jax.core.errors import UserError


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is in object storage, such as `gs://`, which has no append, no rename and no locks."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root, as orbax asks for; remote paths are so already."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def missing_folders(path: epath.Path) -> list[epath.Path]:
    """The folders to be made before there is this one, the innermost first; of a remote path none is one."""
    return [] if is_remote(path) else [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[epath.Path]) -> None:
    """Remove folders in which nothing is; the first with something in it ends this."""
    with contextlib.suppress(OSError, ValueError):  # epath says by a ValueError that something is in it
        for folder in folders:
            folder.rmdir()


def check_directory(path: epath.PathLike, setting: str) -> None:
    """Refuse a path that cannot be a directory.

    Args:
        setting: that named it, for the message, such as `--run_dir runs/a`.

    Raises:
        UserError: it, or what it lies in, is something else.
    """
    place = absolute(epath.Path(path).expanduser())
    there = next(folder for folder in (place, *place.parents) if is_remote(folder) or folder.exists())
    if not is_remote(there) and not there.is_dir():
        raise UserError(f"{setting}: {there} is a file, where a directory is needed")


def write_whole(path: epath.Path, content: str | bytes | memoryview) -> None:
    """Write a file so that readers, and whoever comes after a crash, see the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        with path.open("wb") as file:  # an object appears when its upload is complete
            file.write(data)
        return
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A local file to write, which takes its name, whole and on disk, when the block ends; an error removes it."""
    temporary = Path(f"{os.fspath(path)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)  # which Python does not say of a write
        raise
    finally:
        temporary.unlink(missing_ok=True)


class GrowingFile:
    """A file that grows by whole lines, or by other pieces that are only of use as a whole.

    A line that cannot be written now (a full disk, a bucket out of reach) is kept and tried again with the next one,
    so that a long run does not end for a line of its log.
    """

    def __init__(
        self,
        path: epath.PathLike,
        *,
        keep: Callable[[str], bool] = lambda line: True,
        rewrite_seconds: float | None = None,
    ) -> None:
        """Keep the whole lines of an existing file for which `keep` is true, and continue after them.

        Args:
            path: the file; made if missing.
            keep: which old lines stay. A last line without its end, left by a kill, never does.
            rewrite_seconds: None appends each line at once; a number keeps all lines in memory and writes the whole
                file when that many seconds have passed. Remote paths cannot append: None means 60 there.
        """
        self._path = epath.Path(path)
        self._rewrite_seconds = 60.0 if rewrite_seconds is None and is_remote(path) else rewrite_seconds
        old = self._path.read_bytes() if self._path.exists() else b""
        lines = old.splitlines(keepends=True)
        kept = b"".join(line for line in lines if line.endswith(b"\n") and keep(line.decode(errors="replace")))
        if kept != old:
            write_whole(self._path, kept)
        self._pending, self._size = b"", len(kept)
        self._whole = kept if self._rewrite_seconds is not None else b""
        self._last_rewrite = time.monotonic()
        self._file: IO[bytes] | None = None
        if self._rewrite_seconds is None:
            self._file = Path(self._path).open("ab", buffering=0)  # noqa: SIM115 - closed by close()

    def write(self, line: str) -> None:
        """Add one line, without its end."""
        self.append(line.encode() + b"\n")

    def append(self, content: bytes) -> None:
        """Add what is only of use as a whole."""
        self._pending += content
        if self._rewrite_seconds is None or time.monotonic() - self._last_rewrite >= self._rewrite_seconds:
            self._write_pending()

    def close(self) -> None:
        """Write what is left."""
        if self._pending:
            self._write_pending()
        if self._pending:
            print(f"{self._path}: the last {len(self._pending)} bytes could not be written", file=sys.stderr)
        if self._file is not None:
            self._file.close()

    def _write_pending(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is None:
                self._last_rewrite = time.monotonic()
                write_whole(self._path, self._whole + self._pending)
                self._whole += self._pending
            elif self._file.write(self._pending) != len(self._pending):
                self._file.truncate(self._size)  # half a line; it comes again whole
                return
            self._size += len(self._pending)
            self._pending = b""
