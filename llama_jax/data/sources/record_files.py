"""Files of JSON records as documents: one object a line (.jsonl), or one array of objects (.json). Holds where each
record is; independent of what makes it good."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from etils import epath

from llama_jax.core.arrays import Int, Integer
from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError, read_one_by_one
from llama_jax.data.sources.file_bytes import CHUNK_BYTES, chunks, mark_bytes, read_range
from llama_jax.data.sources.record_text import MAX_RECORD_BYTES, RecordParser, parsed_json, too_long

_NEWLINE = ord("\n")
_BACKSLASH, _QUOTE, _COMMA = (ord(character) for character in '\\",')
_IS_STRUCTURE = bytes(chr(byte) in '"\\{}[],' for byte in range(256))
_DEPTH_CHANGE = np.zeros(256, np.int64)
_DEPTH_CHANGE[[ord("{"), ord("[")]] = 1
_DEPTH_CHANGE[[ord("}"), ord("]")]] = -1

_T = TypeVar("_T")


class _IndexedFile(Generic[_T]):
    """What both kinds of file have in common: where each record is, and the hash of everything.

    Args:
        path: Read once from its start to its end, never more than 1 MiB of it at a time.
        parser: What of each object is the document.
    """

    _bounds: Integer[np.ndarray, "documents two"]
    """First byte of each record and the byte after its last; 8 bytes in files of less than 4 GiB, else 16."""
    _digest: str

    def __init__(self, path: epath.Path, parser: RecordParser[_T]) -> None:
        self._path, self._name, self._parser = path, str(path), parser

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> _T:
        """The document in a record.

        Raises:
            BadRecordError: the record is not a good one, or is longer than 64 MiB and therefore not read.
            UserError: the file was changed.
        """
        start, end = (int(bound) for bound in self._bounds[index])
        if end - start > MAX_RECORD_BYTES:
            raise too_long(end - start, self._where(index))
        return self._parsed(index, read_range(self._path, start, end))

    def read_many(self, indices: Sequence[int]) -> Sequence[_T | BadRecordError]:
        """See `documents.read_many`: records that follow one another come with one read."""
        found: list[_T | BadRecordError] = []
        while len(found) < len(indices):
            numbers = self._together(indices[len(found) :])
            bounds = self._bounds[numbers.start : numbers.stop].tolist()
            if len(numbers) == 1:
                found += read_one_by_one(self, numbers)
                continue
            content, begin = read_range(self._path, bounds[0][0], bounds[-1][1]), bounds[0][0]
            for number, (start, end) in zip(numbers, bounds, strict=True):
                try:
                    found.append(self._parsed(number, content[start - begin : end - begin]))
                except BadRecordError as error:
                    found.append(error)
        return found

    def _together(self, indices: Sequence[int]) -> range:
        """The first of the records, and those that follow it here as in the file, within a chunk of it."""
        start = stop = indices[0]
        begin = self._bounds[start, 0]
        for index in indices:
            if index != stop or (index > start and self._bounds[index, 1] - begin > CHUNK_BYTES):
                break
            stop += 1
        return range(start, stop)

    def _parsed(self, index: int, content: bytes) -> _T:
        return self._parser.of_json(content, self._where(index), whole=self._is_whole(content))

    def identity(self) -> str:
        """SHA-256 of the whole content."""
        return self._digest

    def _where(self, index: int) -> str:
        raise NotImplementedError

    def _is_whole(self, content: bytes) -> bool:
        """Whether the file goes on after a record."""
        return True


class LineFile(_IndexedFile[_T]):
    """The documents of a file of JSON lines; blank lines are skipped. Holds 8 or 16 bytes a line.

    Raises:
        UserError: the file cannot be read, or is compressed or UTF-16.
    """

    def __init__(self, path: epath.Path, parser: RecordParser[_T]) -> None:
        super().__init__(path, parser)
        self._bounds, self._skipped, self._digest = _index_lines(path)

    def _where(self, index: int) -> str:
        """With the number of the line from 1, counting lines that were skipped."""
        place = int(np.searchsorted(self._skipped[:, 0], index, side="right"))
        return f"{self._name}:{index + 1 + (int(self._skipped[place - 1, 1]) if place else 0)}"

    def _is_whole(self, content: bytes) -> bool:
        return content.endswith(b"\n")


class ArrayFile(_IndexedFile[_T]):
    """The documents of a file with one JSON array of objects. Holds 8 or 16 bytes an element.

    Raises:
        UserError: the file cannot be read, or is not a whole JSON array.
    """

    def __init__(self, path: epath.Path, parser: RecordParser[_T]) -> None:
        super().__init__(path, parser)
        digest, bounds = hashlib.sha256(), array("q")

        def hashed() -> Iterator[tuple[int, bytes]]:
            for position, chunk in chunks(path):
                digest.update(chunk)
                yield position, chunk

        try:
            for found in array_bounds(hashed()):
                bounds.frombytes(found.tobytes())
        except ValueError as error:
            raise UserError(f"data.source: {path}: {error}; give an array of objects, or JSON lines (.jsonl)") from None
        self._bounds = _compact(np.frombuffer(bounds, np.int64).reshape(-1, 2))
        self._digest = digest.hexdigest()
        if len(self._bounds) == 1:
            start, end = (int(bound) for bound in self._bounds[0])
            if not read_range(path, start, min(end, start + MAX_RECORD_BYTES)).strip():
                self._bounds = self._bounds[:0]

    def _where(self, index: int) -> str:
        return f"{self._name}[{index}]"


def open_json(path: epath.Path, parser: RecordParser[_T]) -> LineFile[_T] | ArrayFile[_T]:
    """A .json file: an array of objects or, as many data sets have it in spite of the name, an object a line.

    Raises:
        UserError: the file cannot be read, or is neither.
    """
    start = next((chunk for _, chunk in chunks(path)), b"")
    start = start[mark_bytes(start) :].lstrip()
    if not start.startswith(b"{"):
        return ArrayFile(path, parser)
    line, newline, _ = start.partition(b"\n")
    if newline:
        try:
            parsed_json(line, str(path))
        except BadRecordError:
            message = "starts with a line that is not a JSON object; give an array of objects, or JSON lines (.jsonl)"
            raise UserError(f"data.source: {path}: {message}") from None
    return LineFile(path, parser)


def _compact(bounds: Int[np.ndarray, "documents two"]) -> Integer[np.ndarray, "documents two"]:
    """The same numbers with 32 bits, if they have no more: every process that reads the file holds them."""
    return bounds.astype(np.uint32) if len(bounds) == 0 or bounds[-1, 1] < 2**32 else bounds


def _index_lines(path: epath.Path) -> tuple[Integer[np.ndarray, "lines two"], Int[np.ndarray, "gaps two"], str]:
    """First byte of each line that is not blank and the byte after its last; (line, blank lines before it) wherever the
    second number grows; the hash of the file."""
    digest = hashlib.sha256()
    bounds: list[np.ndarray] = []
    gaps: list[np.ndarray] = []
    line_start, open_has_text, lines, kept_lines, size = 0, False, 0, 0, 0
    for position, chunk in chunks(path):
        digest.update(chunk)
        size = position + len(chunk)
        content = np.frombuffer(chunk, np.uint8)
        if position == 0:
            line_start = mark_bytes(chunk)
        ends = np.flatnonzero(content == _NEWLINE) + 1
        if not len(ends):
            open_has_text = open_has_text or bool(chunk[line_start if position == 0 else 0 :].strip())
            continue
        starts = np.concatenate([[max(line_start - position, 0)], ends[:-1]])
        # What starts with a printed character is not blank; only the others are looked at one by one.
        has_text = content[starts] > ord(" ")
        for number in np.flatnonzero(~has_text):
            has_text[number] = bool(chunk[starts[number] : ends[number]].strip())
        has_text[0] |= open_has_text
        starts[0] = line_start - position
        bounds.append(_compact(np.stack([starts[has_text], ends[has_text]], axis=1) + position))
        kept = np.flatnonzero(has_text)
        blank_before = lines + kept - (kept_lines + np.arange(len(kept)))
        grows = np.flatnonzero(np.diff(blank_before, prepend=gaps[-1][-1, 1] if gaps else 0))
        if len(grows):
            gaps.append(np.stack([kept_lines + grows, blank_before[grows]], axis=1))
        lines, kept_lines = lines + len(ends), kept_lines + len(kept)
        line_start = position + int(ends[-1])
        open_has_text = bool(chunk[ends[-1] :].strip())
    if open_has_text:
        bounds.append(_compact(np.array([[line_start, size]])))
        if lines > kept_lines:
            gaps.append(np.array([[kept_lines, lines - kept_lines]]))
    empty = np.zeros((0, 2), np.int64)
    return np.concatenate(bounds or [empty]), np.concatenate([empty, *gaps]), digest.hexdigest()


def array_bounds(chunks: Iterable[tuple[int, bytes]]) -> Iterator[Int[np.ndarray, "elements two"]]:
    """First byte of each element and the byte after its last, white space around it included, in a file that is too
    large to parse at once. Looks at brackets, commas and quotes alone: an element between them may still not be JSON.

    An empty array gives one element of white space.

    Args:
        chunks: (position, bytes) of a file from its start to its end.

    Raises:
        ValueError: the file does not hold one array from its first byte to its last.
    """
    depth, in_string, escaped, element_start = 0, False, False, -1
    position, chunk, ended = 0, b"", False
    for position, chunk in chunks:
        skipped = 0
        if element_start < 0:
            skipped = mark_bytes(chunk) if position == 0 else 0
            skipped += len(chunk[skipped:]) - len(chunk[skipped:].lstrip())
            if skipped == len(chunk):
                continue
            if chunk[skipped : skipped + 1] != b"[":
                raise ValueError("not a JSON array")
            element_start = position + skipped + 1
        if ended:
            _expect_blank(chunk, position)
            continue
        places, escaped = _structure(chunk, escaped)
        places = places[places >= skipped]
        kinds = np.frombuffer(chunk, np.uint8)[places]
        quotes = kinds == _QUOTE
        inside = (np.cumsum(quotes) + in_string) % 2 == 1
        places, kinds = places[~inside & ~quotes], kinds[~inside & ~quotes]
        in_string = bool((in_string + quotes.sum()) % 2)
        depths = depth + np.cumsum(_DEPTH_CHANGE[kinds])
        closing = np.flatnonzero(depths <= 0)
        if len(closing):
            ended, last = True, int(closing[0])
            _expect_blank(chunk[places[last] + 1 :], position + int(places[last]) + 1)
            places, kinds, depths = places[: last + 1], kinds[: last + 1], depths[: last + 1]
        ends = position + places[((kinds == _COMMA) & (depths == 1)) | (depths <= 0)]
        if len(ends):
            yield np.stack([np.concatenate([[element_start], ends[:-1] + 1]), ends], axis=1)
            element_start = int(ends[-1]) + 1
        depth = int(depths[-1]) if len(depths) else depth
    if element_start < 0:
        raise ValueError("holds no JSON")
    if not ended:
        raise ValueError(f"the array does not end; the file was cut short at byte {position + len(chunk)}")


def _structure(chunk: bytes, escaped: bool) -> tuple[Int[np.ndarray, "places"], bool]:
    """Positions of brackets, commas and quotes that no backslash precedes, and whether the next byte has one before.

    Args:
        escaped: Whether the first byte has a backslash before it that counts.
    """
    content = np.frombuffer(chunk, np.uint8)
    places = np.flatnonzero(np.frombuffer(chunk.translate(_IS_STRUCTURE), np.bool_))
    if escaped:
        places = places[places > 0]
    is_backslash = content[places] == _BACKSLASH
    backslashes = places[is_backslash]
    if not len(backslashes):
        return places, False
    # Of a run of backslashes the first, third, fifth, ... escape what follows.
    run_starts = np.diff(backslashes, prepend=-2) != 1
    numbers = np.arange(len(backslashes))
    within_run = numbers - np.maximum.accumulate(np.where(run_starts, numbers, 0))
    followers = backslashes[within_run % 2 == 0] + 1
    others = places[~is_backslash]
    return others[~np.isin(others, followers)], int(followers[-1]) == len(chunk)


def _expect_blank(rest: bytes, position: int) -> None:
    if text := rest.lstrip():
        raise ValueError(f"something follows the JSON array at byte {position + len(rest) - len(text)}")
