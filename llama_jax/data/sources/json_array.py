"""Where the elements of a JSON array lie in a file that is too large to parse at once. Looks at brackets, commas and
quotes alone: an element between them may still not be JSON."""

from collections.abc import Iterable, Iterator

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.data.sources.file_bytes import mark_bytes

_BACKSLASH, _QUOTE, _COMMA = (ord(character) for character in '\\",')
_IS_STRUCTURE = bytes(chr(byte) in '"\\{}[],' for byte in range(256))
_DEPTH_CHANGE = np.zeros(256, np.int64)
_DEPTH_CHANGE[[ord("{"), ord("[")]] = 1
_DEPTH_CHANGE[[ord("}"), ord("]")]] = -1


def array_bounds(chunks: Iterable[tuple[int, bytes]]) -> Iterator[Int[np.ndarray, "elements two"]]:
    """First byte of each element and the byte after its last, white space around it included.

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
