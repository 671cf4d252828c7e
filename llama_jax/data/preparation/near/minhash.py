"""MinHash signatures of texts (Broder 1997) and the keys of their bands. Knows nothing of files or duplicates."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llama_jax.core.arrays import Integer, UInt32
from llama_jax.data.preparation.near.words import random_numbers, words_of

_TILE = 2**14  # shingles at once: two arrays of 64 bits stay within the cache of a core
_HALF = np.uint64(32)


@dataclass(frozen=True)
class MinHash:
    """How texts are made comparable: by the sets of their shingles, runs of `shingle` words.

    A text with fewer words is one shingle, whole; one without words is like nothing. Two texts whose sets have a
    Jaccard similarity of s share a band with a probability of 1 - (1 - s^rows)^bands (arXiv:2107.06499, appendix A).
    """

    shingle: int = 5
    bands: int = 14
    rows: int = 8

    nothing: ClassVar[int] = 2**32 - 1
    """Each value in the signature of a text without words."""

    @property
    def permutations(self) -> int:
        """Values in a signature."""
        return self.bands * self.rows

    def signatures(self, texts: Sequence[str]) -> UInt32[np.ndarray, "texts permutations"]:
        """Of each text the least value of its shingles under each permutation; `nothing` in each place for a text
        without words.

        Two texts agree in a share of the places that estimates the Jaccard similarity of their shingles. A shingle x of
        32 bits becomes the upper half of a x + b modulo 2^64, with random 64-bit a and b for each permutation: strongly
        universal (Dietzfelbinger 1996; Thorup 2015, arXiv:1504.06804, section 3.3).
        """
        shingles, counts = self._shingles(texts)
        result = np.full((len(texts), self.permutations), self.nothing, np.uint32)
        some = np.flatnonzero(counts)
        for first, last in _tiles(counts[some]):
            starts = np.cumsum(counts[some[first:last]])
            tile, shingles = shingles[: starts[-1]], shingles[starts[-1] :]
            result[some[first:last]] = _least(tile, starts - counts[some[first:last]], self.permutations)
        return result

    def _shingles(self, texts: Sequence[str]) -> tuple[Integer[np.ndarray, "shingles"], Integer[np.ndarray, "texts"]]:
        """The shingles of texts, one text after the other, 32 bits of each in 64; and how many each has."""
        words, counts = words_of(texts)
        # Texts that are short of a shingle are filled up, so that every text with a word has one.
        filled = np.where(counts > 0, np.maximum(counts, self.shingle), 0)
        padded = np.zeros(filled.sum() + self.shingle - 1, np.uint64)
        padded[np.arange(len(words)) + np.repeat(np.cumsum(filled - counts) - (filled - counts), counts)] = words
        sums = np.zeros(filled.sum(), np.uint64)
        for place, factor in enumerate(random_numbers("shingles", self.shingle)):
            sums += padded[place : place + len(sums)] * factor
        inside = np.ones(len(sums), bool)  # all but those that run into the next text
        ends = np.cumsum(filled)[filled > 0]
        for behind in range(1, self.shingle):
            inside[ends - behind] = False
        return sums[inside] >> _HALF, np.where(counts > 0, filled - self.shingle + 1, 0)

    def band_keys(self, signatures: UInt32[np.ndarray, "texts permutations"]) -> Integer[np.ndarray, "texts bands"]:
        """64 bits of each band of each signature: equal for the same band with the same values, and by chance for
        others, which costs a comparison."""
        factors = random_numbers("bands", self.permutations).reshape(self.bands, self.rows)
        banded = signatures.reshape(len(signatures), self.bands, self.rows)
        keys = np.zeros((len(signatures), self.bands), np.uint64)
        for row in range(self.rows):
            keys += banded[:, :, row] * factors[:, row]
        return keys


def signature_keys(signatures: UInt32[np.ndarray, "texts permutations"]) -> Integer[np.ndarray, "texts"]:
    """64 bits of each whole signature."""
    keys = np.zeros(len(signatures), np.uint64)
    for place, factor in enumerate(random_numbers("whole", signatures.shape[1])):
        keys += signatures[:, place] * factor
    return keys


def _tiles(counts: Integer[np.ndarray, "texts"]) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of texts with about a tile of shingles in each."""
    numbers = np.cumsum(counts) // _TILE
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(counts)]
    return ((first, last) for first, last in itertools.pairwise(cuts) if first < last)


def _least(
    shingles: Integer[np.ndarray, "shingles"], starts: Integer[np.ndarray, "texts"], permutations: int
) -> UInt32[np.ndarray, "texts permutations"]:
    """The least value under each permutation of the shingles from each start to the next."""
    factors, offsets = random_numbers("permute", 2 * permutations).reshape(2, permutations)
    values = np.empty_like(shingles)
    least = np.empty((permutations, len(starts)), np.uint64)
    for number in range(permutations):
        np.multiply(shingles, factors[number], out=values)
        np.add(values, offsets[number], out=values)
        np.minimum.reduceat(values, starts, out=least[number])
    return (least >> _HALF).astype(np.uint32).T
