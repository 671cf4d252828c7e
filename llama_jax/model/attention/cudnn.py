"""Attention by cuDNN, NVIDIA's library, which JAX calls as one operation. It knows nothing of segment ids: the
documents of a packed row are told by where they begin and how long they are, and their number must be bounded.

Nothing of this has run on a GPU yet: it is compiled for one, and what cuDNN is told is tested."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo
from jax.ad_checkpoint import checkpoint_name

from llama_jax.core.arrays import Array, Bool, Float, Int
from llama_jax.model.attention.kernels import grouped_triton
from llama_jax.model.attention.sequence import CHECKPOINT_NAME, Segments, by_heads

# `jax.nn.dot_product_attention` takes no offsets of documents.
library: Any = fused_attention_stablehlo

CUDNN_HEAD_MULTIPLE, CUDNN_LARGEST_HEAD = 8, 256
"""Sizes of a head that it takes, in numbers of 16 bits (`check_is_flash_attention` in JAX)."""
CUDNN_CAPABILITY = (9, 0)
"""Compute capability (Hopper) from which on it takes packed rows."""
_TOKENS_A_DOCUMENT = 128
"""Of the documents of a row, counted on average, at the least: all of them are looked at by each block of queries, and
there are statistics for each, as long as the row."""


def is_there() -> bool:
    """Whether JAX has found cuDNN, and a GPU, without which nothing is compiled for it, not even to plan a run."""
    return library.cuda_versions is not None and jax.default_backend() == "gpu"


def cudnn(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """FlashAttention by cuDNN, bfloat16, statistics in float32. Each run of equal segment ids is a document, padding
    too. A batch with a row of more than `most_documents` is left to `triton`."""
    return by_heads(_attend, query_BTNH, key_BSKH, value_BSKH, segments)


def most_documents(length: int) -> int:
    """Documents that a row of `length` tokens may have for cuDNN."""
    return max(length // _TOKENS_A_DOCUMENT, 2)


def documents(ids: Int[Array, "B T"], most: int) -> tuple[Int[Array, "B M"], Int[Array, "B M"], Bool[Array, ""]]:
    """Where the documents of each row begin, how long they are, both -1 beyond the last one, and whether no row has
    more than `most`."""
    length = ids.shape[1]
    begins = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    places = jnp.sort(jnp.where(begins, jnp.arange(length, dtype=jnp.int32), length), axis=1)
    places = jnp.pad(places, ((0, 0), (0, max(most + 1 - length, 0))), constant_values=length)
    starts, ends = places[:, :most], places[:, 1 : most + 1]
    there = starts < length
    return jnp.where(there, starts, -1), jnp.where(there, ends - starts, -1), jnp.all(begins.sum(axis=1) <= most)


@jax.custom_vjp
def _attend(query: Array, key: Array, value: Array, segments: Segments) -> Array:
    return _forward(query, key, value, segments)[0]


def _forward(query: Array, key: Array, value: Array, segments: Segments) -> tuple[Array, Any]:
    ids = None if segments is None else segments.keys
    if ids is None:
        results = _called_forward(None, query, key, value)
    else:
        *told, few = documents(ids, most_documents(query.shape[1]))
        shapes = jax.eval_shape(_called_forward, told, query, key, value)

        def by_triton(*arrays: Array) -> tuple[Array, Array]:
            return grouped_triton(*arrays, segments), jnp.zeros(shapes[1].shape, shapes[1].dtype)

        results = jax.lax.cond(few, functools.partial(_called_forward, told), by_triton, query, key, value)
    mixed, statistics = (checkpoint_name(array, CHECKPOINT_NAME) for array in results)
    return mixed, (query, key, value, segments, mixed, statistics)


def _backward(kept: Any, gradient: Array) -> tuple[Array | None, ...]:
    query, key, value, segments, mixed, statistics = kept
    arrays = (query, key, value, mixed, statistics, gradient)
    if segments is None:
        return *_called_backward(None, *arrays), None
    *told, few = documents(segments.keys, most_documents(query.shape[1]))

    def by_triton(query: Array, key: Array, value: Array, *others: Array) -> tuple[Array, ...]:
        return jax.vjp(lambda *qkv: grouped_triton(*qkv, segments), query, key, value)[1](others[-1])

    return *jax.lax.cond(few, functools.partial(_called_backward, told), by_triton, *arrays), None


_attend.defvjp(_forward, _backward)


def _called_forward(told: Any, query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """What is mixed, and the logarithms of the sums of the softmax: for each document, where these are told."""
    return library.dot_product_attention(
        query,
        key,
        value,
        **({} if told is None else _packed(told)),
        scale=query.shape[-1] ** -0.5,
        mask_type=_mask(told),
        return_residual=True,
    )


def _called_backward(told: Any, *arrays: Array) -> tuple[Array, ...]:
    """Gradients of query, key and value. The operation itself is called, so that its statistics could be named above:
    JAX's own rule would make them again."""
    *qkv, mixed, statistics, gradient = arrays
    nothing = jnp.zeros(0, qkv[0].dtype)
    optional = dict.fromkeys(("q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets"), nothing)
    optional |= {} if told is None else _packed(told)
    parameters: dict[str, Any] = {
        "scale": qkv[0].shape[-1] ** -0.5,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": _mask(told),
        "layout": library.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    # From JAX 0.12 on.
    if "score_mod" in inspect.signature(library._dot_product_attention_bwd_impl).parameters:
        parameters["score_mod"] = None
    of_documents = (*optional.values(), nothing, nothing)
    return tuple(
        library._dot_product_attention_bwd_p_wrapper.bind(
            *qkv, nothing, *of_documents, statistics, mixed, gradient, **parameters
        )
    )


def _packed(told: Any) -> dict[str, Array]:
    starts, lengths = told
    # (The number of documents of a row is told by one less than the number of offsets.)
    offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    return {"q_seqlen": lengths, "kv_seqlen": lengths, "q_offsets": offsets, "kv_offsets": offsets}


def _mask(told: Any) -> Any:
    return library.MaskType.CAUSAL if told is None else library.MaskType.PADDING_CAUSAL
