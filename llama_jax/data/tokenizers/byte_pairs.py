"""Byte-pair encoding as files spell it: lists of merges, and bytes written as characters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Part = TypeVar("Part", str, bytes)


def merges_of(ids: Mapping[Part, int], best_first: Iterable[Part]) -> list[list[Part]]:
    """Every pair of tokens that together are a token, in the order in which merging should try them."""
    merges: list[list[Part]] = []
    for token in best_first:
        splits = ((token[:middle], token[middle:]) for middle in range(1, len(token)))
        known = ((ids[left], ids[right], left, right) for left, right in splits if left in ids and right in ids)
        merges += [[left, right] for _, _, left, right in sorted(known)]
    return merges


def byte_characters() -> Sequence[str]:
    """GPT-2's character for each byte: itself where it is printable Latin-1, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
