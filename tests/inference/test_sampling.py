"""Sampling: hand-computed top-k and top-p, frequencies, and independence of the rest of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.sampling import filtered, sample

LOGITS = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))


def kept(config: SamplingConfig) -> list[int]:
    return np.flatnonzero(np.isfinite(np.asarray(filtered(LOGITS, config))[0])).tolist()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.8001}, [0, 1, 2]),
        ({"top_p": 0.01}, [0]),
        ({"top_k": 3, "top_p": 0.8}, [0, 1]),
    ],
)
def test_top_k_and_top_p_keep_the_tokens_computed_by_hand(changes: dict, expected: list[int]) -> None:
    assert kept(SamplingConfig(temperature=1.0, **changes)) == expected


def test_temperature_divides_the_logits() -> None:
    np.testing.assert_allclose(filtered(LOGITS, SamplingConfig(temperature=0.5)), 2 * LOGITS, rtol=1e-6)


def test_temperature_zero_is_the_most_likely_token() -> None:
    logits = jnp.asarray([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    chosen = sample(logits, SamplingConfig(temperature=0.0), jax.random.key(0), jnp.zeros(2, jnp.int32))
    assert chosen.tolist() == [1, 0]


def test_frequencies_follow_the_probabilities() -> None:
    rows = jnp.tile(LOGITS, (20_000, 1))
    chosen = sample(rows, SamplingConfig(temperature=1.0), jax.random.key(3), jnp.zeros(20_000, jnp.int32))
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / 20_000, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_a_row_is_drawn_alike_whatever_else_is_in_the_batch() -> None:
    config = SamplingConfig(temperature=1.0)
    rows = jax.random.normal(jax.random.key(1), (4, 50))
    together = sample(rows, config, jax.random.key(2), jnp.arange(4))
    fewer = sample(rows[:2], config, jax.random.key(2), jnp.arange(2))
    assert together[:2].tolist() == fewer.tolist()
