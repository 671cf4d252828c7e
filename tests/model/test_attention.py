"""Every implementation of attention computes the textbook formula, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.model import attention as module
from llama_jax.model.attention import Shapes, attention, choose


def reference(query, key, value, segments):
    """Loops over rows and heads in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    B, T, N, H = query.shape
    K = key.shape[2]
    mixed = np.zeros((B, T, N, H))
    for b in range(B):
        visible = np.tril(np.ones((T, T), bool)) & (segments[b][:, None] == segments[b][None])
        for n in range(N):
            scores = query[b, :, n] @ key[b, :, n // (N // K)].T / np.sqrt(H)
            scores[~visible] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[b, :, n] = weights / weights.sum(axis=-1, keepdims=True) @ value[b, :, n // (N // K)]
    return mixed


@pytest.fixture
def inputs(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, 64, 6, 8))
    key, value = (jax.random.normal(k, (2, 64, 3, 8)) for k in keys[1:])
    segments = np.repeat([[1] * 20 + [2] * 44, [1] * 30 + [2] * 30 + [0] * 4], 1, axis=0)
    return query, key, value, segments


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_values_equal_the_reference(inputs, implementation) -> None:
    query, key, value, segments = inputs
    ids = jnp.asarray(segments)
    found = attention(query, key, value, query_segments=ids, key_segments=ids, implementation=implementation)
    np.testing.assert_allclose(found, reference(query, key, value, segments), atol=2e-6)


def test_gradients_of_all_implementations_agree(inputs) -> None:
    query, key, value, segments = inputs
    ids = jnp.asarray(segments)

    def gradient(implementation):
        def loss(*arrays):
            mixed = attention(*arrays, query_segments=ids, key_segments=ids, implementation=implementation)
            return jnp.sum(jnp.sin(mixed))

        return jax.grad(loss, argnums=(0, 1, 2))(query, key, value)

    for found, expected in zip(gradient("blocked"), gradient("xla"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def shapes(query_length, key_length):
    return Shapes(2, query_length, key_length, num_heads=6, num_kv_heads=3, head_size=8, dtype="float32")


def test_auto_takes_blocks_for_long_whole_rows_only() -> None:
    assert choose("auto", shapes(2048, 2048)) == ("blocked", "")
    assert choose("auto", shapes(256, 256)) == ("xla", "blocked gains nothing in rows of one block of 256 tokens")
    assert choose("auto", shapes(2000, 2000)) == ("xla", "blocked needs rows in blocks of 256 tokens, got 2000")
    assert choose("auto", shapes(1, 2048)) == ("xla", "blocked needs whole rows, got 1 queries for 2048 keys")


def test_blocked_refuses_what_it_cannot_do(inputs) -> None:
    query, key, value, _ = inputs
    with pytest.raises(UserError, match=r"^compute.attention: blocked needs rows in blocks of 16 tokens, got 10$"):
        attention(query[:, :10], key[:, :10], value[:, :10], implementation="blocked")
