"""Bytes of files that documents are cut from, local or in a bucket. Knows formats only to name them in a refusal."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote

CHUNK_BYTES = 2**20
_SAMPLE_BYTES = 128 * 1024
_MOST_RECORDS = 2**27  # of a file of no bytes: records that are all the same take none
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SIGNATURES = {
    b"\x1f\x8b": "compressed by gzip; unpack it, as documents are read at random",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, as documents are read at random",
    b"BZh": "compressed by bzip2; unpack it, as documents are read at random",
    b"\xfd7zXZ": "compressed by xz; unpack it, as documents are read at random",
    b"PK\x03\x04": "a zip archive; unpack it, as documents are read at random",
    b"\xff\xfe": "UTF-16; write it as UTF-8",
    b"\xfe\xff": "UTF-16; write it as UTF-8",
    b"PAR1": "a parquet file; name it .parquet",
}
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")

_T = TypeVar("_T")


class ProcessCache(Generic[_T]):
    """What the threads of the process used last. A child process starts with none of it after a fork.

    Args:
        is_too_much: Whether something must go; one thing alone never goes.
    """

    def __init__(self, is_too_much: Callable[[Collection[_T]], bool]) -> None:
        self._is_too_much = is_too_much
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._kept: OrderedDict[Hashable, _T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What is kept under a key; made if it is not."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > 1 and self._is_too_much(self._kept.values()):
                self._kept.popitem(last=False)
        return made


def chunks(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) of a text file from its start to its end, 1 MiB at a time, a byte order mark included.

    Raises:
        UserError: the file cannot be read, or starts as a file of another format.
    """
    try:
        with path.open("rb") as file:
            position = 0
            while chunk := file.read(CHUNK_BYTES):
                if position == 0:
                    _refuse_other_formats(path, chunk)
                yield position, chunk
                position += len(chunk)
    except OSError as error:
        raise unreadable(path, error) from None


def mark_bytes(first_chunk: bytes) -> int:
    """The length of the byte order mark that a file starts with."""
    return len(BYTE_ORDER_MARK) if first_chunk.startswith(BYTE_ORDER_MARK) else 0


def read_range(path: epath.Path, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to before `end`.

    Raises:
        UserError: the file is gone or too short.
    """
    try:
        # A document is one read, so a buffer would only read what nobody asked for.
        with path.open("rb") if is_remote(path) else Path(path).open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read(end - start)
    except OSError as error:
        raise unreadable(path, error) from None
    if content is None or len(content) != end - start:
        raise UserError(f"{path}: ends before byte {end}; it was changed after it had been indexed")
    return content


def sampled_digest(path: epath.Path, footer_bytes: int = 0) -> str:
    """SHA-256 over the length of a file, its first 128 KiB and its last 128 KiB, or `footer_bytes` where that is more.

    Sees whatever changes the length or one of these parts; a change of the same length elsewhere in the file, it does
    not.
    """
    size = path.stat().length
    tail = max(_SAMPLE_BYTES, footer_bytes)
    digest = hashlib.sha256(f"{size}\n".encode())
    digest.update(read_range(path, 0, min(size, _SAMPLE_BYTES)))
    digest.update(read_range(path, max(0, size - tail), size))
    return digest.hexdigest()


def check_count(path: epath.PathLike, records: int, size: int) -> None:
    """Refuse a file of `size` bytes that declares more records than it can hold: every one costs memory.

    Raises:
        UserError: so it does.
    """
    if not 0 <= records <= _MOST_RECORDS + size:
        raise UserError(f"data.source: {path}: declares {records:,} records in {size:,} bytes; write it anew")


def unreadable(path: epath.PathLike, error: Exception) -> UserError:
    """The refusal of a file that cannot be opened or is not what its name says, in one line."""
    reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"data.source: {path}: cannot be read: {reason}")


def _refuse_other_formats(path: epath.Path, start: bytes) -> None:
    for signature, what in _SIGNATURES.items():
        if start.startswith(signature):
            raise UserError(f"data.source: {path}: is {what}")
