"""Metrics against numbers computed by hand."""

import math

import pytest

from llama_jax.evals.tasks import means


def test_standard_errors_are_of_the_mean() -> None:
    found = means([{"a": 1}, {"a": 0}, {"a": 0}, {"a": 1}], ["a"])
    # Sample variance 4 * 0.25 / 3, over 4 samples.
    assert found == {"a": 0.5, "a_stderr": pytest.approx(math.sqrt(1 / 3 / 4))}
    assert means([{"a": 2.5}], ["a"]) == {"a": 2.5, "a_stderr": 0.0}
