"""Attention a block of queries and a block of keys at a time, in plain JAX: FlashAttention-2 (Dao 2023,
arXiv:2307.08691) for where no kernel runs.

Scores exist for one pair of blocks at a time, and blocks of keys behind a block of queries are never visited."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llama_jax.core.arrays import Array, Float, Int
from llama_jax.model.attention.sequence import (
    CHECKPOINT_NAME,
    Segments,
    by_device,
    length_spec,
    piece_count,
    query_positions,
    seen,
)

BLOCK = 128
"""Tokens of a block, at the most. Of 64, 128, 256 and 512 it is the fastest on CPU over the lengths and head sizes of
small models: a block of scores fits the cache."""
_SMALLEST = 32
# Finite, so that a row which may see nothing (padding) has a softmax without NaN.
MASKED = -1e30


def block_size(length: int) -> int | None:
    """Queries that are taken at a time of rows of `length` tokens; None where only tiny blocks divide them."""
    piece = length // piece_count()
    if piece <= BLOCK:
        return piece
    return next((size for size in range(BLOCK, _SMALLEST - 1, -1) if piece % size == 0), None)


def blocks_visited(length: int) -> float:
    """Blocks of keys that a block of queries meets in rows of `length` tokens, on average."""
    size = block_size(length)
    assert size is not None, f"no block divides {length} tokens"
    ends = query_positions(length)[::size] + size
    return float(np.mean(-(-ends // _key_size(size, length))))


def _key_size(size: int, length: int) -> int:
    # Where rows are split into small pieces, several make a block of keys.
    return max(size, math.gcd(length, BLOCK))


def blocked(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """Causal attention of whole rows. Scores, statistics and sums are float32."""
    size = block_size(query_BTNH.shape[1])
    assert size is not None, f"no block divides {query_BTNH.shape[1]} tokens"
    starts = jnp.asarray(query_positions(query_BTNH.shape[1])[::size])
    return by_device(_attend, query_BTNH, key_BSKH, value_BSKH, segments, (starts,), (length_spec(0),))


@dataclass(frozen=True)
class _Keys:
    """Keys and values cut into blocks, and what the queries of one block see of them."""

    keys: Float[Array, "blocks B K S H"]
    values: Float[Array, "blocks B K S H"]
    ids: Int[Array, "blocks B S"] | None
    query_size: int

    @property
    def size(self) -> int:
        """Keys of a block."""
        return self.keys.shape[3]

    def visited(self, start: Int[Array, ""]) -> Int[Array, ""]:
        """Number of blocks up to the end of the block of queries that begins at `start`."""
        return (start + self.query_size - 1) // self.size + 1

    def scores(
        self,
        queries: Float[Array, "B K GT H"],
        ids: tuple[Array, Array | None] | None,
        start: Int[Array, ""],
        block: Int[Array, ""],
    ) -> Float[Array, "B K GT S"]:
        """Scores of a block of queries for a block of keys, those of keys that are not seen `MASKED`.

        Args:
            ids: documents of the queries `[B, T]`, and second ones (`SegmentIds.prefixes`).
        """
        scores = _product("BKTH,BKSH->BKTS", queries, self.keys[block]) * queries.shape[-1] ** -0.5
        positions = start + jnp.arange(self.query_size)
        visible = (positions[:, None] >= block * self.size + jnp.arange(self.size)[None])[None]
        if ids is not None and self.ids is not None:
            visible &= seen(ids[0], self.ids[block], ids[1])
        B, K, GT, S = scores.shape
        by_head = scores.reshape(B, K, GT // self.query_size, self.query_size, S)
        return jnp.where(visible[:, None, None], by_head, MASKED).reshape(scores.shape)


@jax.custom_vjp
def _attend(query: Array, key: Array, value: Array, segments: Segments, starts: Int[Array, "blocks"]) -> Array:
    """Queries in blocks that begin at the positions `starts`, against the keys of whole rows."""
    return _forward(query, key, value, segments, starts)[0]


def _forward(query: Array, key: Array, value: Array, segments: Segments, starts: Array) -> tuple[Array, Any]:
    keys, queries, query_ids = _cut(query, key, value, segments, len(starts))

    def mix(_: None, of_block: tuple) -> tuple[None, tuple[Array, Array]]:
        queries, ids, start = of_block

        def add(block: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            mixed, total, largest = sums
            scores = keys.scores(queries, ids, start, block)
            larger = jnp.maximum(largest, scores.max(axis=-1))
            weights, shrinkage = jnp.exp(scores - larger[..., None]), jnp.exp(largest - larger)
            added = _product("BKTS,BKSH->BKTH", weights.astype(value.dtype), keys.values[block])
            return mixed * shrinkage[..., None] + added, total * shrinkage + weights.sum(axis=-1), larger

        nothing = jnp.zeros(queries.shape, jnp.float32)
        sums = (nothing, nothing[..., 0], nothing[..., 0] + MASKED)
        mixed, total, largest = jax.lax.fori_loop(0, keys.visited(start), add, sums)
        return None, ((mixed / total[..., None]).astype(query.dtype), largest + jnp.log(total))

    _, (mixed, statistics) = jax.lax.scan(mix, None, (queries, query_ids, starts))
    mixed, statistics = (
        checkpoint_name(array, CHECKPOINT_NAME) for array in (_joined(mixed, keys.query_size), statistics)
    )
    return mixed, (query, key, value, segments, starts, mixed, statistics)


def _backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array, None, None]:
    query, key, value, segments, starts, mixed, statistics = kept
    keys, queries, query_ids = _cut(query, key, value, segments, len(starts))
    # Sum over the keys of weight times gradient of the weight (appendix B of FlashAttention, arXiv:2205.14135).
    mean = (gradient.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    by_block = (_split(array, key.shape[2], keys.query_size) for array in (gradient, mean))

    def differentiate(by_key_and_value: tuple[Array, Array], of_block: tuple) -> tuple[tuple[Array, Array], Array]:
        queries, ids, start, gradient, mean, statistics = of_block

        def add(block: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            by_query, by_key, by_value = sums
            weights = jnp.exp(keys.scores(queries, ids, start, block) - statistics[..., None])
            by_weight = _product("BKTH,BKSH->BKTS", gradient, keys.values[block])
            by_score = (weights * (by_weight - mean) * query.shape[-1] ** -0.5).astype(query.dtype)
            by_query += _product("BKTS,BKSH->BKTH", by_score, keys.keys[block])
            by_key = by_key.at[block].add(_product("BKTS,BKTH->BKSH", by_score, queries))
            by_value = by_value.at[block].add(_product("BKTS,BKTH->BKSH", weights.astype(gradient.dtype), gradient))
            return by_query, by_key, by_value

        sums = (jnp.zeros(queries.shape, jnp.float32), *by_key_and_value)
        by_query, by_key, by_value = jax.lax.fori_loop(0, keys.visited(start), add, sums)
        return (by_key, by_value), by_query

    nothing = jnp.zeros(keys.keys.shape, jnp.float32)
    rows = (queries, query_ids, starts, *by_block, statistics)
    (by_key, by_value), by_query = jax.lax.scan(differentiate, (nothing, nothing), rows)
    by_query = _joined(by_query, keys.query_size).astype(query.dtype)
    by_key, by_value = (_joined(array, keys.size).astype(key.dtype) for array in (by_key, by_value))
    return by_query, by_key, by_value, None, None


_attend.defvjp(_forward, _backward)


def _product(subscripts: str, left: Array, right: Array) -> Array:
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _cut(
    query: Array, key: Array, value: Array, segments: Segments, blocks: int
) -> tuple[_Keys, Array, tuple[Array, Array | None] | None]:
    """Keys, queries (`[blocks, B, K, G T, H]`) and documents of the queries, in blocks."""
    K, size = key.shape[2], query.shape[1] // blocks
    key_size = _key_size(size, key.shape[1])
    query_ids = key_ids = None
    if segments is not None:
        query_ids = jax.tree.map(lambda ids: _split_ids(ids, size), (segments.queries, segments.prefixes))
        key_ids = _split_ids(segments.keys, key_size)
    keys = _Keys(_split(key, K, key_size), _split(value, K, key_size), key_ids, size)
    return keys, _split(query, K, size), query_ids


def _split(array: Float[Array, "B T N H"], kv_heads: int, size: int) -> Float[Array, "blocks B K GT H"]:
    """Blocks of `size` tokens, each with the heads of a group one below the other."""
    B, T, N, H = array.shape
    blocks = array.reshape(B, T // size, size, kv_heads, N // kv_heads, H)
    return jnp.transpose(blocks, (1, 0, 3, 4, 2, 5)).reshape(T // size, B, kv_heads, N // kv_heads * size, H)


def _joined(array: Float[Array, "blocks B K GT H"], size: int) -> Float[Array, "B T N H"]:
    """The inverse of `_split`."""
    blocks, B, K, rows, H = array.shape
    by_head = array.reshape(blocks, B, K, rows // size, size, H)
    return jnp.transpose(by_head, (1, 0, 4, 2, 3, 5)).reshape(B, blocks * size, K * (rows // size), H)


def _split_ids(ids: Int[Array, "B T"], size: int) -> Int[Array, "blocks B size"]:
    return jnp.moveaxis(ids.reshape(len(ids), -1, size), 1, 0)
