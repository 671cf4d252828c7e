"""A file of plain text as documents: cut at blank lines into pieces of at most 16 KiB, a longer paragraph at line ends,
a longer line between characters. Put together again, they are the file."""

import hashlib
import re
from array import array

import numpy as np
from etils import epath

from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.file_bytes import chunks, mark_bytes, read_range

_DOCUMENT_BYTES = 16 * 1024
_TAIL_BYTES = 2 * 1024
_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")


class TextFile:
    """The documents of a text file. Holds their offsets only, 16 bytes each; a file of white space alone has none.

    Args:
        path: Read once from its start to its end.

    Raises:
        UserError: the file cannot be read, or is compressed or UTF-16.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self._bounds, self._digest = _index(path)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> str:
        """A piece of the file.

        Raises:
            BadRecordError: the piece is not UTF-8 or holds NUL; the pieces around it may be good.
            UserError: the file was changed.
        """
        start, end = (int(bound) for bound in self._bounds[index])
        content, where = read_range(self._path, start, end), f"{self._path} bytes {start}-{end}"
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise BadRecordError("not_utf8", where, f"not UTF-8 at byte {start + error.start}") from None
        if (nul := content.find(b"\0")) >= 0:
            raise BadRecordError("nul", where, f"holds NUL at byte {start + nul}; remove it")
        return text

    def identity(self) -> str:
        """SHA-256 of the whole content."""
        return self._digest


def _index(path: epath.Path) -> tuple[np.ndarray, str]:
    """First byte of each document and the byte after its last; the hash of the file."""
    digest, bounds, window, position, has_text = hashlib.sha256(), array("q"), b"", 0, False
    for chunk_position, chunk in chunks(path):
        digest.update(chunk)
        if chunk_position == 0:
            position = mark_bytes(chunk)
            chunk = chunk[position:]
        has_text = has_text or bool(chunk.strip())
        window, start = window + chunk, 0
        # One byte beyond a full document shows whether it ends between characters.
        while len(window) - start > _DOCUMENT_BYTES:
            end = start + _document_size(window, start)
            bounds.extend((position + start, position + end))
            start = end
        position, window = position + start, window[start:]
    if window:
        bounds.extend((position, position + len(window)))
    offsets = np.frombuffer(bounds, np.int64) if has_text else np.zeros(0, np.int64)
    return offsets.reshape(-1, 2), digest.hexdigest()


def _document_size(window: bytes, start: int) -> int:
    """Bytes of the document at `start`, where there are more than a document may have."""
    limit = start + _DOCUMENT_BYTES
    blank = _last_blank_lines(window, start, limit)
    for end in (blank, window.rfind(b"\n", start, limit) + 1):
        if end > start and window[start:end].strip():
            return end - start
    while limit > start + _DOCUMENT_BYTES - 3 and window[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit - start


def _last_blank_lines(window: bytes, start: int, limit: int) -> int:
    """The end of the last run of blank lines between two positions; 0 when there is none."""
    for first in (max(start, limit - _TAIL_BYTES), start):  # most often there is one near the end
        if last := max((match.end() for match in _BLANK_LINES.finditer(window, first, limit)), default=0):
            return last
    return 0
