"""What quality rules look at in a text: its words, lines and paragraphs, and how much of it says again what it said.

A word is what white space parts, so none of this suits languages that write without it. Fractions are of the characters
that are not white space; a duplicate is every occurrence but the first."""

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from llama_jax.core.arrays import Int

_BLANK_LINES = re.compile(r"\n\s*\n")
LONGEST_NGRAM = 10


class Page:
    """A text, taken apart when it is first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = text.split()

    @cached_property
    def distinct(self) -> dict[str, int]:
        """The different words, numbered in the order in which they first occur."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @cached_property
    def ids(self) -> Int[np.ndarray, "words"]:
        """The number of each word in `distinct`."""
        return np.fromiter(map(self.distinct.__getitem__, self.words), np.int64, len(self.words))

    @cached_property
    def lengths(self) -> Int[np.ndarray, "words"]:
        """Characters of each word."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def characters(self) -> int:
        """Those that are not white space."""
        return int(self.lengths.sum())

    @cached_property
    def lines(self) -> list[str]:
        """Without white space at both ends; those that hold nothing else are no lines."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines part."""
        return [stripped for part in _BLANK_LINES.split(self.text) if (stripped := part.strip())]

    @cached_property
    def repeated_ngrams(self) -> "dict[int, tuple[float, float]]":
        """For n from 2 to 10 words, the fraction of characters in the most frequent n-gram (the longest of those), and
        in duplicate n-grams. Of n-grams that overlap, characters count once."""
        return dict(enumerate(_repeated_ngrams(self.ids, self.lengths), start=2))


def duplicate_fractions(parts: Sequence[str]) -> tuple[float, float]:
    """The fraction of parts that are the same as an earlier one, and the fraction of characters in them."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0.0, 0.0
    characters = sum(map(len, parts))
    return 1 - len(distinct) / len(parts), 1 - sum(map(len, distinct)) / characters


def _repeated_ngrams(ids: Int[np.ndarray, "words"], lengths: Int[np.ndarray, "words"]) -> list[tuple[float, float]]:
    """See `Page.repeated_ngrams`. Exact: an n-gram is known by the numbers of the two n-1-grams in it, and where one of
    those does not occur again, neither does it; so little is left to compare as n grows."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    fractions = [(0.0, 0.0)] * (LONGEST_NGRAM - 1)
    known = ids  # of each (n-1)-gram its number, -1 for one that does not occur again
    if len(ids):
        known = np.where(np.bincount(ids)[ids] > 1, ids, -1)
    for n in range(2, LONGEST_NGRAM + 1):
        starts = np.flatnonzero((known[:-1] >= 0) & (known[1:] >= 0))
        if len(starts) < 2:
            break
        keys = known[starts] * len(ids) + known[starts + 1]
        order = np.argsort(keys, kind="stable")  # of equal ones the first occurrence stays first
        starts, keys = starts[order], keys[order]
        is_first = np.concatenate([[True], keys[1:] != keys[:-1]])
        group = np.cumsum(is_first) - 1
        counts = np.bincount(group)
        if len(counts) == len(starts):
            break
        firsts = np.flatnonzero(is_first)
        sizes = ends[starts[firsts] + n] - ends[starts[firsts]]
        top = np.lexsort((-starts[firsts], sizes, counts))[-1]  # of equal ones the first
        in_top, in_duplicates = (_covered(each, n, lengths) for each in (starts[group == top], starts[~is_first]))
        fractions[n - 2] = in_top / int(ends[-1]), in_duplicates / int(ends[-1])
        is_repeated = counts[group] > 1
        known = np.full(len(ids) - n + 1, -1)
        known[starts[is_repeated]] = group[is_repeated]
    return fractions


def _covered(starts: Int[np.ndarray, "occurrences"], n: int, lengths: Int[np.ndarray, "words"]) -> int:
    """Characters of all words that lie in one of the n-grams at least."""
    change = np.zeros(len(lengths) + 1, np.int64)
    change[starts] += 1
    change[starts + n] -= 1
    return int(lengths[np.cumsum(change[:-1]) > 0].sum())
