"""Causal attention over packed rows: one function, several implementations chosen by name.

All take grouped queries and segment ids, and never let a query see another segment."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Bool, Float, Int

Implementation = Literal["xla", "blocked"]

BLOCK = 256
# Finite, so that a row which may see nothing (padding) has a softmax without NaN.
MASKED = -1e30


def choose(implementation: str, query_length: int, key_length: int) -> Implementation:
    """The implementation that `auto` stands for at these lengths; any other name stands for itself.

    `blocked` needs a whole number of blocks and full rows of keys: it never forms the part of the scores that causality
    masks, so it takes half the time and 1/(T/256) of the memory of `xla` on long rows.
    """
    if implementation == "auto":
        whole = query_length == key_length and query_length % BLOCK == 0
        return "blocked" if whole and query_length > BLOCK else "xla"
    if implementation == "xla":
        return "xla"
    return "blocked"


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    *,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    query_start: Int[Array, "B"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax(Q K^T / sqrt(H)) V (Vaswani et al. 2017, arXiv:1706.03762, equation 1) under the causal mask.

    Args:
        query_segments: document of each query; with `key_segments`, only keys of the same document are seen. None: one
            document.
        query_start: index among the keys of each row's first query (decoding with a cache); None: 0.
        implementation: `auto`, or a name.

    Returns:
        The mix of values in the type of the query; scores and softmax are float32. Query head n reads key/value head
        n // (N/K).
    """
    chosen = choose(implementation, query_BTNH.shape[1], key_BSKH.shape[1])
    if chosen == "blocked":
        if query_start is not None or query_BTNH.shape[1] % BLOCK or query_BTNH.shape[1] != key_BSKH.shape[1]:
            raise ValueError(f"blocked attention needs whole rows in blocks of {BLOCK}, got T={query_BTNH.shape[1]}")
        return _blocked(query_BTNH, key_BSKH, value_BSKH, query_segments, key_segments)
    start = jnp.zeros(query_BTNH.shape[0], jnp.int32) if query_start is None else query_start
    return _xla(query_BTNH, key_BSKH, value_BSKH, query_segments, key_segments, start)


def _visible(
    query_length: int,
    key_length: int,
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
    query_start: Int[Array, "B"],
) -> Bool[Array, "B T S"]:
    query_index = query_start[:, None] + jnp.arange(query_length)
    visible = query_index[:, :, None] >= jnp.arange(key_length)
    if query_segments is not None and key_segments is not None:
        visible &= query_segments[:, :, None] == key_segments[:, None, :]
    return visible


def _xla(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
    query_start: Int[Array, "B"],
) -> Float[Array, "B T N H"]:
    """All scores at once."""
    B, T, N, H = query_BTNH.shape
    S, K = key_BSKH.shape[1:3]
    G = N // K
    # One batch of plain matrix products for each row and key/value head, the queries of its group below each other:
    # contractions over more axes than that are several times slower on CPU, and no faster elsewhere.
    query = jnp.moveaxis(query_BTNH.reshape(B, T, K, G, H), 1, 3).reshape(B, K, G * T, H)
    key, value = (jnp.moveaxis(array, 1, 2) for array in (key_BSKH, value_BSKH))
    scores = jnp.einsum("BKTH,BKSH->BKTS", query, key, preferred_element_type=jnp.float32) * H**-0.5
    visible = _visible(T, S, query_segments, key_segments, query_start)[:, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores.reshape(B, K, G, T, S), MASKED), axis=-1)
    mixed = jnp.einsum("BKTS,BKSH->BKTH", weights.astype(value.dtype).reshape(B, K, G * T, S), value)
    return jnp.moveaxis(mixed.reshape(B, K, G, T, H), 3, 1).reshape(B, T, N, H)


def _blocked(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
) -> Float[Array, "B T N H"]:
    """A block of queries at a time against the keys up to its end; the backward pass recomputes the scores of a block,
    so only one block of them is ever alive."""
    B, T = query_BTNH.shape[:2]
    outputs = []
    for first in range(0, T, BLOCK):
        last = first + BLOCK
        start = jnp.full(B, first, jnp.int32)
        segments = None if query_segments is None else query_segments[:, first:last]
        keys_of = None if key_segments is None else key_segments[:, :last]
        block = jax.checkpoint(functools.partial(_xla, query_start=start))
        outputs.append(block(query_BTNH[:, first:last], key_BSKH[:, :last], value_BSKH[:, :last], segments, keys_of))
    return jnp.concatenate(outputs, axis=1)
