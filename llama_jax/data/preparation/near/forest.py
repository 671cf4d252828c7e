"""Which numbers are joined, by pairs: union-find (Tarjan 1975) over arrays, many pairs at a time."""

import tempfile

import numpy as np

from llama_jax.core.arrays import Integer

_MAPPED = 2**31  # bytes from which on an array is kept in a temporary file


class Forest:
    """Numbers below `count`, each in a group of its own at first. 4 bytes each; 8 from 2^32 on.

    The smallest number of a group stands for it, so groups do not depend on the order of the pairs.
    """

    def __init__(self, count: int) -> None:
        self.dtype = np.dtype(np.uint32 if count < 2**32 else np.uint64)
        self._above = zeros(count, self.dtype)
        for start in range(0, count, 2**24):
            self._above[start : start + 2**24] = np.arange(start, min(count, start + 2**24))

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


def zeros(count: int, dtype: np.typing.DTypeLike) -> Integer[np.ndarray, "count"]:
    """An array of zeros, in a temporary file where it is large."""
    if count * np.dtype(dtype).itemsize < _MAPPED:
        return np.zeros(count, dtype)
    return np.memmap(tempfile.TemporaryFile(), dtype, "w+", shape=(count,))
