"""Numbers that say how good answers are, independent of model and task."""

import math
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
