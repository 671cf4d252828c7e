"""The fast kernels that come with JAX: `splash` for TPU. On CPU they are run by Pallas' interpreter, which is slow and
there for tests."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import NamedSharding

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Float, Int
from llama_jax.model.attention_sequence import by_device, length_spec, piece_count, query_positions

SPLASH_MULTIPLE = 128
"""Lanes of a TPU: the smallest block of queries or keys that splash takes."""
_SPLASH_BLOCKS = (512, 256, SPLASH_MULTIPLE)
"""Of these, the largest that divides the length is taken. 512 is the default of MaxText; with head sizes up to 256 it
fits the vector memory of every generation from v4 on in float32 (1024 does not on v4)."""


def splash(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None,
    name: str,
) -> Float[Array, "B T N H"]:
    """Splash attention (JAX's Pallas kernel): FlashAttention (Dao et al. 2022, arXiv:2205.14135) that visits only the
    blocks which causality leaves. Softmax statistics and sums are float32; the factor 1 / sqrt(H) is on the queries, in
    their type.

    Args:
        name: for `jax.checkpoint`, of the results that the backward pass needs.
    """
    heads = query_BTNH.shape[2] // sharding.size_of("heads")
    kernel = _splash_kernel(query_BTNH.shape[1], heads, name)
    mesh = jax.sharding.get_abstract_mesh()
    # Where rows are split, each device has a list of its own of the blocks to visit.
    places = () if mesh.empty else (kernel.manual_sharding_spec(NamedSharding(mesh, length_spec(1))),)

    def part(query: Array, key: Array, value: Array, segments: Any, kernel: Any) -> Array:
        query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        query, key, value = (jnp.moveaxis(array, 1, 2) for array in (query, key, value))
        ids = None if segments is None else splash_attention_kernel.SegmentIds(*segments)
        return jnp.moveaxis(jax.vmap(kernel)(query, key, value, ids), 2, 1)

    return by_device(part, query_BTNH, key_BSKH, value_BSKH, segments, (kernel,), places)


def _splash_kernel(length: int, heads: int, name: str) -> splash_attention_kernel.SplashAttentionKernel:
    """The kernel for rows of `length` tokens, with what each of the devices that split a row has to visit of it."""
    mask = splash_attention_mask.CausalMask((length, length))
    mask.q_sequence = query_positions(length)
    block = splash_block(length)
    assert block is not None, f"no block divides {length} tokens"
    blocks = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=sharding.size_of("length"),
        residual_checkpoint_name=name,
        interpret=sharding.platform() == "cpu",
    )


def splash_block(length: int) -> int | None:
    """Queries, and keys, that splash takes at a time of rows of `length` tokens; None where no block divides them."""
    piece = length // piece_count()
    fitting = (block for block in _SPLASH_BLOCKS if piece % block == 0)
    return None if length % piece_count() else next(fitting, None)
