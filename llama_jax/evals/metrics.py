"""Numbers that say how good answers are, independent of model and task."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def means(samples: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """The mean of each named field, and as `<name>_stderr` its standard error, from the sample's standard deviation
    (n - 1, as lm-evaluation-harness). One sample tells nothing of the error: it is 0."""
    results = {}
    for name in names:
        values = [float(sample[name]) for sample in samples]
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        results[name] = mean
        results[f"{name}_stderr"] = math.sqrt(squares / max(1, len(values) - 1) / len(values))
    return results


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1): F1 of the longest common subsequence of words, between 0 and 1.

    Words are runs of a-z and 0-9 in lower case, not stemmed, as in the package rouge-score.
    """
    first, second = (re.findall("[a-z0-9]+", text.lower()) for text in (reference, answer))
    common = [0] * (len(second) + 1)  # of the words of the first text so far and each beginning of the second
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, 1):
            longest = diagonal + 1 if word == other else max(common[index], common[index - 1])
            diagonal, common[index] = common[index], longest
    return 2 * common[-1] / (len(first) + len(second)) if common[-1] else 0.0
