"""Causal attention over packed rows: one function, several implementations chosen by name.

All take grouped queries and segment ids, and never let a query see another segment."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Bool, Float, Int
from llama_jax.core.errors import UserError
from llama_jax.model.attention_kernels import SPLASH_MULTIPLE, splash, splash_block
from llama_jax.model.attention_sequence import piece_count
from llama_jax.model.config import ComputeConfig, LlamaConfig

Implementation = Literal["xla", "blocked", "splash"]

CHECKPOINT_NAME = "attention"
"""What the policies of `jax.checkpoint` call the results of attention that the backward pass needs: the mix of values,
and where a kernel makes them, the softmax statistics."""
BLOCK = 256
# Finite, so that a row which may see nothing (padding) has a softmax without NaN.
MASKED = -1e30

_FASTEST: dict[str, Implementation] = {"cpu": "blocked", "gpu": "blocked", "tpu": "splash"}


class Shapes(NamedTuple):
    """What decides which implementations can run."""

    rows: int
    query_length: int
    key_length: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: str

    @staticmethod
    def of_whole_rows(config: LlamaConfig, compute: ComputeConfig, rows: int, length: int) -> "Shapes":
        """Those of the training of a model on a (micro)batch."""
        heads = (config.num_heads, config.num_kv_heads, config.head_size)
        return Shapes(rows, length, length, *heads, compute.dtype)


class Choice(NamedTuple):
    """An implementation, and why it is not the platform's fastest (empty where it is, or where it was asked for)."""

    name: Implementation
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def choose(implementation: str, shapes: Shapes) -> Choice:
    """The implementation that will run under the mesh in use.

    `auto` takes the fastest of the platform where it can run, then `blocked`, then `xla`. `blocked` never forms the
    part of the scores that causality masks, so on long rows it takes half the time and 256/T of the memory of `xla`.

    Raises:
        UserError: an implementation asked for by name cannot run; the message says why.
    """
    if implementation != "auto":
        if problem := _problem(implementation, shapes):
            raise UserError(f"compute.attention: {implementation} {problem}")
        return Choice(implementation, "")  # pyright: ignore[reportArgumentType]
    reasons = []
    for name in dict.fromkeys((_FASTEST[sharding.platform()], "blocked", "xla")):
        problem = _problem(name, shapes)
        if name == "blocked" and not problem and shapes.query_length <= BLOCK:
            problem = f"gains nothing in rows of one block of {BLOCK} tokens"
        if not problem:
            return Choice(name, "; ".join(reasons))
        reasons.append(f"{name} {problem}")
    raise AssertionError("xla runs everywhere")


def _problem(implementation: str, shapes: Shapes) -> str:
    """Why the implementation cannot run, in words that follow its name; nothing where it can."""
    length = shapes.query_length
    if implementation == "xla":
        return ""
    if length != shapes.key_length:
        return f"needs whole rows, got {length} queries for {shapes.key_length} keys"
    if implementation == "blocked":
        return "" if length % BLOCK == 0 else f"needs rows in blocks of {BLOCK} tokens, got {length}"
    if sharding.platform() == "gpu":
        return "is a kernel for TPUs, and this is a GPU"
    if splash_block(length) is None:
        return f"needs rows in multiples of {SPLASH_MULTIPLE * piece_count()} tokens, got {length}"
    for count, axis, what in ((shapes.rows, "batch", "rows"), (shapes.num_kv_heads, "kv_heads", "key/value heads")):
        if count % (parts := sharding.size_of(axis)):
            return f"needs as many {what} on each of {parts} devices, got {count}"
    return ""


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
        query_start: index among the keys of each row's first query (decoding with a cache, which is `xla`'s whatever
            the implementation); None: 0.
        implementation: `auto`, or a name.

    Returns:
        The mix of values in the type of the query; scores and softmax are float32. Query head n reads key/value head
        n // (N/K).

    Raises:
        UserError: an implementation asked for by name cannot run.
    """
    B, T, N, H = query_BTNH.shape
    if query_start is not None:
        return _xla(query_BTNH, key_BSKH, value_BSKH, query_segments, key_segments, query_start)
    shapes = Shapes(B, T, key_BSKH.shape[1], N, key_BSKH.shape[2], H, query_BTNH.dtype.name)
    chosen = choose(implementation, shapes).name
    if chosen == "splash":
        segments = None if query_segments is None or key_segments is None else (query_segments, key_segments)
        return splash(query_BTNH, key_BSKH, value_BSKH, segments, CHECKPOINT_NAME)
    if chosen == "blocked":
        mixed = _blocked(query_BTNH, key_BSKH, value_BSKH, query_segments, key_segments)
    else:
        start = jnp.zeros(B, jnp.int32)
        mixed = _xla(query_BTNH, key_BSKH, value_BSKH, query_segments, key_segments, start)
    return checkpoint_name(mixed, CHECKPOINT_NAME)


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
