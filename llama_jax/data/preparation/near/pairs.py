"""Which documents are similar, among those in one bucket: with the same key of a band."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Integer, Shaped, UInt32

BANDED = np.dtype([("key", "<u8"), ("signature", "<u8"), ("document", "<i8")])
"""A band of a document: the band's key, a hash of the whole signature, and the document's number."""

NEIGHBOURS = 64
"""Each document is compared with so many behind it in its bucket and as many before it: with all in a bucket of up to
129 different signatures."""
_LOADED = 2**14  # signatures, 7 MB of the default ones
_COMPARED = 2**12  # pairs at once


class Pairs(NamedTuple):
    """Pairs of documents, by number."""

    left: Integer[np.ndarray, "pairs"]
    right: Integer[np.ndarray, "pairs"]
    equal: Integer[np.ndarray, "pairs"]
    """Places in which their signatures agree."""


@dataclass
class Compared:
    """What was compared."""

    pairs: int = 0
    """Of documents; one that shares several buckets counts as often."""
    left_out: int = 0
    """Pairs in one bucket that were not compared, since it is large."""
    large_buckets: int = 0


class Buckets(NamedTuple):
    """Different signatures that share a bucket with another, in an order that does not depend on that of the documents:
    by the bucket's key, then by the hash of the signature."""

    documents: Integer[np.ndarray, "members"]
    sizes: Integer[np.ndarray, "buckets"]
    identical: Pairs
    """Documents with the signature of another, which are no members: each with the one before it."""


def buckets_of(bands: Shaped[np.ndarray, "bands"], permutations: int) -> Buckets:
    """Bring together what has the same key.

    Args:
        bands: Of type `BANDED`, in any order.
        permutations: Values in a signature.
    """
    order = np.argsort(bands["key"])
    keys = bands["key"][order]
    shared = np.zeros(len(keys), bool)
    np.equal(keys[1:], keys[:-1], out=shared[1:])
    shared[:-1] |= shared[1:]
    bands = bands[order[shared]]
    bands = bands[np.lexsort((bands["document"], bands["signature"], bands["key"]))]
    keys, documents = bands["key"], bands["document"]
    same = np.zeros(len(bands), bool)
    same[1:] = (keys[1:] == keys[:-1]) & (bands["signature"][1:] == bands["signature"][:-1])
    again = np.flatnonzero(same)
    identical = Pairs(documents[again - 1], documents[again], np.full(len(again), permutations))
    _, buckets, sizes = np.unique(keys[~same], return_inverse=True, return_counts=True)
    return Buckets(documents[~same][sizes[buckets] > 1], sizes[sizes > 1], identical)


def similar_pairs(
    buckets: Buckets,
    signatures: Callable[[Integer[np.ndarray, "documents"]], UInt32[np.ndarray, "documents permutations"]],
    least: int,
    compared: Compared,
) -> Iterator[Pairs]:
    """Every compared pair whose signatures agree in at least `least` places.

    In a bucket of more than 129 members each is compared with the 64 before it and the 64 behind it in a circle in the
    order of a hash. That is a random sample which depends on the members alone, joins a bucket that is one group, and
    costs each member as much as in a smaller bucket. Documents that are similar but far apart in that circle are found
    by their other bands.

    Args:
        signatures: Loads those of documents, given in ascending order.
        compared: Counts what is compared.
    """
    yield buckets.identical
    compared.pairs += len(buckets.identical.left)
    large = buckets.sizes[buckets.sizes > 2 * NEIGHBOURS + 1]
    compared.large_buckets += len(large)
    compared.left_out += int((large * (large - 1) // 2 - large * NEIGHBOURS).sum())
    for members, sizes in _batches(buckets.sizes):
        documents, places = np.unique(buckets.documents[members], return_inverse=True)
        loaded = signatures(documents)
        for left, right in _circles(sizes):
            compared.pairs += len(left)
            for first in range(0, len(left), _COMPARED):
                one, other = (places[side[first : first + _COMPARED]] for side in (left, right))
                equal = np.count_nonzero(loaded[one] == loaded[other], axis=1)
                found = equal >= least
                yield Pairs(documents[one[found]], documents[other[found]], equal[found])


def _batches(
    sizes: Integer[np.ndarray, "buckets"],
) -> Iterator[tuple[Integer[np.ndarray, "members"], Integer[np.ndarray, "some"]]]:
    """Buckets with about as many members together as are loaded at once: the places of their members, and their sizes.

    A bucket that is larger comes in parts, with members in common that keep them connected.
    """
    parts = -(-sizes // _LOADED)
    before = _LOADED * (np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts))
    starts = np.repeat(np.cumsum(sizes) - sizes, parts) + before
    sizes = np.minimum(np.repeat(sizes, parts) - before, _LOADED + NEIGHBOURS)
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _LOADED)) + 1
    for some, first in zip(np.split(sizes, cuts), np.split(starts, cuts), strict=True):
        within = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
        yield np.repeat(first, some) + within, some


def _circles(
    sizes: Integer[np.ndarray, "buckets"],
) -> Iterator[tuple[Integer[np.ndarray, "pairs"], Integer[np.ndarray, "pairs"]]]:
    """Pairs of members by their places: each member with the next, then each with the one behind that, and so on."""
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    length = np.repeat(sizes, sizes)
    places = np.arange(len(length)) - starts
    for step in range(1, min(NEIGHBOURS, int(sizes.max(initial=0)) // 2) + 1):
        # Half way round a circle, members meet those that have met them.
        left = np.flatnonzero((2 * step < length) | ((2 * step == length) & (places < step)))
        yield left, starts[left] + (places[left] + step) % length[left]
