"""A number that proves which tokens were used, in any order and over any number of interruptions.

Each (document, token pair) has 64 bits of its own, and a ledger is the sum of those that were used, modulo 2^64: it can
be computed again from a position alone, and a pair that was left out or used twice shows. Knows no text.
"""

import functools
from typing import TypeVar

import numpy as np

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""Its fraction times 2^64. Multiples of it modulo 1 spread more evenly than those of any other number."""

_MASK = 2**64 - 1
_TABLE_PAIRS = 2**18
"""Pairs whose running sums are kept (2 MB); only longer documents are summed pair by pair."""

_Number = TypeVar("_Number", int, np.ndarray)


def entered(ledger: int, document: int, start: int, stop: int) -> int:
    """A ledger with the pairs `start` to `stop` (left out) of a document added.

    Args:
        document: Number of the document in its source, the same in every epoch.
    """
    sums = _running_sums()
    amount = int(sums[stop]) - int(sums[start]) if stop <= _TABLE_PAIRS else _long_sum(start, stop)
    # Odd, so that no pair of any document counts for nothing.
    return (ledger + (mixed(document) | 1) * amount) & _MASK


def mixed(number: _Number) -> _Number:
    """64 bits that look random (splitmix64, Steele et al. 2014), of a whole number or of each in an array of uint64."""
    number = (number + GOLDEN_RATIO) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def _mixed_range(start: int, stop: int) -> np.ndarray:
    return mixed(np.arange(start, stop, dtype=np.uint64))


@functools.cache
def _running_sums() -> np.ndarray:
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed_range(0, _TABLE_PAIRS), dtype=np.uint64)])


def _long_sum(start: int, stop: int) -> int:
    sums = _running_sums()
    direct = max(start, _TABLE_PAIRS)
    return int(sums[-1]) - int(sums[min(start, _TABLE_PAIRS)]) + int(_mixed_range(direct, stop).sum(dtype=np.uint64))
