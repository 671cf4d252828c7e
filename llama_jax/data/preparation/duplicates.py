"""Documents that are the same as an earlier one, found by the hashes of all. Does not know what is hashed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Int


class Duplicates(NamedTuple):
    """Documents that are the same as an earlier one."""

    documents: Int[np.ndarray, "duplicates"]
    """Their numbers, ascending."""
    first: Int[np.ndarray, "duplicates"]
    """Of each, the number of the first document that is the same."""

    def within(self, start: int, stop: int) -> "Duplicates":
        """Those with numbers from `start` to before `stop`."""
        left, right = np.searchsorted(self.documents, (start, stop))
        return Duplicates(self.documents[left:right], self.first[left:right])


NO_DUPLICATES = Duplicates(np.zeros(0, np.int64), np.zeros(0, np.int64))


def duplicates_of(hashes: Sequence[Callable[[], Int[np.ndarray, "documents two"]]], chunk: int) -> Duplicates:
    """Every document that has the hash of an earlier one.

    Args:
        hashes: For each range of documents, in order, a function that loads their hashes.
        chunk: Documents to compare at once, at 40 bytes each; their hashes are loaded once for each chunk.
    """
    counts = [len(load()) for load in hashes]
    parts = max(1, -(-sum(counts) // chunk))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for part in range(parts):
        pieces, numbers, start = [], [], 0
        for load, count in zip(hashes, counts, strict=True):
            each = load()
            chosen = np.flatnonzero((each[:, 0] % np.uint64(parts) == part) & each.any(axis=1))
            pieces.append(each[chosen])
            numbers.append(chosen + start)
            start += count
        values, documents = np.concatenate(pieces), np.concatenate(numbers)
        order = np.lexsort((values[:, 1], values[:, 0]))  # stable: of equal ones the first document comes first
        values, documents = values[order], documents[order]
        same = np.zeros(len(values), bool)
        same[1:] = (values[1:] == values[:-1]).all(axis=1)
        firsts = documents[~same][np.cumsum(~same) - 1]
        found.append((documents[same], firsts[same]))
    documents, firsts = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    order = np.argsort(documents)
    return Duplicates(documents[order], firsts[order])
