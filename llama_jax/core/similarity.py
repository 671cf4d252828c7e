"""ROUGE-L of a text with every text of a growing pool: exact, and most comparisons are settled by a bound."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from llama_jax.core.arrays import Int

_CUT_AGAIN, _LEAST_CUT = 0.9, 0.05
"""Texts with a bound of at least the highest are compared first, then those with nine tenths of that, and so on, until
there are as many as are asked for."""


class Similar(NamedTuple):
    """A text of the pool, and how similar it is."""

    number: int
    score: float
    """ROUGE-L F1 (Lin 2004, section 3.1), between 0 and 1."""


class SimilarityIndex:
    """Texts, numbered in the order in which they were added, as words.

    No common subsequence is longer than the words that two texts share, counted with their repetitions. Which texts
    share how many is read off lists that say, for each word, where it occurs; the longest common subsequence (by
    rapidfuzz, 64 words at a time) is computed only of those that could be among the most similar.

    Args:
        words: of a text, as they are compared.
    """

    def __init__(self, words: Callable[[str], Sequence[str]]) -> None:
        self._words = words
        self._letters: dict[str, str] = {}
        """For each word a character of its own: strings are what rapidfuzz is fastest with."""
        self._encoded: list[str] = []
        self._lengths = np.zeros(1024, np.int32)
        self._occurrences: dict[str, list[array[int]]] = {}
        """Of a word's character, the texts that have it at least once, at least twice, and so on; ascending."""

    def __len__(self) -> int:
        return len(self._encoded)

    def add(self, text: str) -> None:
        """Add a text to the pool."""
        number, words = len(self._encoded), self._words(text)
        encoded = "".join(self._letters.setdefault(word, chr(len(self._letters) + 1)) for word in words)
        for letter, count in Counter(encoded).items():
            lists = self._occurrences.setdefault(letter, [])
            lists.extend(array("i") for _ in range(count - len(lists)))
            for texts in lists[:count]:
                texts.append(number)
        if number == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._lengths[number] = len(encoded)
        self._encoded.append(encoded)

    def most_similar(self, text: str, count: int = 1) -> list[Similar]:
        """The texts that are most similar, the most similar first and of equals the one added first; `count` of them,
        or fewer where the others have no word in common with it."""
        words = self._words(text)
        known = [self._letters.get(word) for word in words]
        shared = self._shared(filter(None, known))
        # A word that no text has must still take part in the length, and differ from all others: no letter is "\0".
        letters = "".join(letter or "\0" for letter in known)
        if not shared.any():
            return []
        bounds = 2 * shared / (self._lengths[: len(self)] + len(words))
        # Those with the highest bounds say what there is to beat; the others that could are then looked at.
        cut = bounds.max()
        while len(first := np.flatnonzero(bounds >= cut)) < count and cut > _LEAST_CUT:
            cut *= _CUT_AGAIN
        best = np.sort(self._scores(letters, first))[-count:]
        to_beat = best[0] if len(best) == count else 0.0
        looked_at = np.flatnonzero((bounds >= to_beat) & (shared > 0))
        scores = self._scores(letters, looked_at)
        order = np.lexsort((looked_at, -scores))[:count]
        return [Similar(int(looked_at[place]), float(scores[place])) for place in order if scores[place] > 0]

    def _shared(self, letters: Iterable[str]) -> Int[np.ndarray, "texts"]:
        """Words, with repetitions, that each text shares with the letters."""
        lists = [texts for letter, times in Counter(letters).items() for texts in self._occurrences[letter][:times]]
        if not lists:
            return np.zeros(len(self), np.int64)
        return np.bincount(np.concatenate([np.frombuffer(texts, np.int32) for texts in lists]), minlength=len(self))

    def _scores(self, letters: str, numbers: Int[np.ndarray, "texts"]) -> np.ndarray:
        """ROUGE-L F1 with the texts of these numbers; 0 where both are empty."""
        if not len(numbers):
            return np.zeros(0)
        common = cdist(
            [letters], [self._encoded[number] for number in numbers], scorer=LCSseq.similarity, dtype=np.int32
        )
        return 2 * common[0] / np.maximum(self._lengths[numbers] + len(letters), 1)
