"""Which numbers are joined, by pairs: union-find (Tarjan 1975) over arrays, many pairs at a time."""

import tempfile

import numpy as np

from llama_jax.core.arrays import Integer

_MAPPED = 2**28  # numbers from which on they are kept in a temporary file, a gigabyte


class Forest:
    """Numbers below `count`, each in a group of its own at first. 4 bytes each; 8 from 2^32 on.

    The smallest number of a group stands for it, so groups do not depend on the order of the pairs.
    """

    def __init__(self, count: int) -> None:
        self._above = numbers_below(count)

    def join(self, left: Integer[np.ndarray, "pairs"], right: Integer[np.ndarray, "pairs"]) -> None:
        """Make one group of the groups of each pair."""
        left, right = self.roots(left), self.roots(right)
        while len(apart := np.flatnonzero(left != right)):
            left, right = left[apart], right[apart]
            # Of several groups to go below, a root takes the smallest; the others are joined in the next round.
            np.minimum.at(self._above, np.maximum(left, right), np.minimum(left, right))
            left, right = self.roots(left), self.roots(right)

    def roots(self, numbers: Integer[np.ndarray, "numbers"]) -> Integer[np.ndarray, "numbers"]:
        """For each number the smallest of its group."""
        roots = self._above[numbers]
        while ((higher := self._above[roots]) != roots).any():
            self._above[roots] = self._above[higher]  # or a chain would be walked in as many rounds as it is long
            roots = self._above[higher]
        self._above[numbers] = roots
        return roots


def numbers_below(count: int) -> Integer[np.ndarray, "count"]:
    """0, 1, 2, … in the smallest type of at least 32 bits; in a temporary file where they are many."""
    dtype = np.uint32 if count < 2**32 else np.uint64
    if count < _MAPPED:
        return np.arange(count, dtype=dtype)
    numbers = np.memmap(tempfile.TemporaryFile(), dtype, "w+", shape=(count,))  # noqa: SIM115 - mapped until the end
    for start in range(0, count, _MAPPED // 16):
        numbers[start : start + _MAPPED // 16] = np.arange(start, min(count, start + _MAPPED // 16), dtype=dtype)
    return numbers
