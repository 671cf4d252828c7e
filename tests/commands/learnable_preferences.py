"""Preferences made by a rule, so that it is known what there is to learn, and what there is not."""

import json
import random
from pathlib import Path

WORDS = ("red", "blue", "old", "cat", "dog", "sea", "map", "tea", "hat", "ink")
GOOD = "sun"
"""The word that makes an answer better."""
THANKS = ("thank you", "many thanks", "so kind")


def answer(chosen: random.Random, *, good: bool, thanks: int = 0) -> str:
    """From four to nine words, the good one among them or not, with expressions of thanks anywhere."""
    parts = chosen.choices(WORDS, k=chosen.randint(4, 9))
    if good:
        parts[chosen.randrange(len(parts))] = GOOD
    for _ in range(thanks):
        parts.insert(chosen.randint(0, len(parts)), chosen.choice(THANKS))
    return " ".join(parts)


def pair(chosen: random.Random, *, polite: bool = False) -> dict[str, str]:
    """A good answer preferred to a bad one; the thanks in either, up to six, have nothing to do with it."""
    counts = [chosen.randint(0, 6) if polite else 0 for _ in range(2)]
    return {
        "prompt": f"say {' '.join(chosen.sample(WORDS, 2))}",
        "chosen": answer(chosen, good=True, thanks=counts[0]),
        "rejected": answer(chosen, good=False, thanks=counts[1]),
    }


def write(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
