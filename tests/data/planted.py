"""Texts with near-duplicates planted among them, and exact similarities to compare estimates with."""

import random
import re

_WORDS = re.compile(r"[^\W_]+")
VOCABULARY = [a + b + c for a in "bdfglmnprstvz" for b in ("a", "e", "i", "o", "u", "ai") for c in "bdfglmnprstvz"]


def random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words))


def changed(text: str, share: float, rng: random.Random) -> str:
    """The text with this share of its words, at least one, in places by chance, replaced by others."""
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = rng.choice(VOCABULARY)
    return " ".join(words)


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = _WORDS.findall(text.lower())
    return {tuple(words[place : place + size]) for place in range(max(1, len(words) - size + 1))}


def jaccard(one: str, other: str) -> float:
    """Exact similarity of the sets of shingles."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)
