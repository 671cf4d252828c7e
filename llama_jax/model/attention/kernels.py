"""The fast kernels that come with JAX: `splash` for TPU, `triton` for GPU. On a CPU they are run by the interpreter of
Pallas, which is slow and there for tests.

JAX means to remove its backend for Triton and points to tokamax (0.0.17, for Python 3.12 and JAX 0.11.1 or later). Its
`dot_product_attention` takes packed rows as a mask of [B, N, T, S] alone, the very array that a fused kernel is to
avoid: that the keys of a query begin at some place, which its kernels could use, has no public name."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import next_power_of_2
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import NamedSharding

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Float
from llama_jax.core.chips import SMALLEST_SHARED_MEMORY
from llama_jax.core.mesh import chip, platform
from llama_jax.model.attention.sequence import (
    CHECKPOINT_NAME,
    Segments,
    by_device,
    by_heads,
    length_spec,
    piece_count,
    query_positions,
)

SPLASH_MULTIPLE = 128
"""Lanes of a TPU: the smallest block of queries or keys that splash takes."""
_SPLASH_BLOCKS = (512, 256, SPLASH_MULTIPLE)
"""Of these, the largest that divides the length is taken. 512 is the default of MaxText; with head sizes up to 256 it
fits the vector memory of every generation from v4 on in float32 (1024 does not on v4)."""

TRITON_MULTIPLE = 16
"""The smallest block that the matrix products of Triton take."""
_TRITON_FORWARD = ((128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (16, 16))
"""Blocks of queries and of keys, largest first."""
_TRITON_BACKWARD = (64, 32, 16)
TRITON_BACKWARD_WARPS = 8
"""Of 32 threads. JAX's choice, 4, has too few registers for heads of 128 numbers."""
_SUMS = 128
"""Float32 numbers that a thread sums up in, at the most."""
TRITON_HEAD_BYTES = 1024
"""Largest head whose smallest blocks fit the 99 KiB of shared memory of the GPUs that have least (L4, RTX 4090)."""


def splash(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """Splash attention (JAX's Pallas kernel): FlashAttention (Dao et al. 2022, arXiv:2205.14135) that visits only the
    blocks which causality leaves. Softmax statistics and sums are float32; the factor 1 / sqrt(H) is on the queries, in
    their type."""
    kernel = _splash_kernel(query_BTNH.shape[1], query_BTNH.shape[2] // sharding.size_of("heads"))
    mesh = jax.sharding.get_abstract_mesh()
    # Where rows are split, each device has a list of its own of the blocks to visit.
    places = () if mesh.empty else (kernel.manual_sharding_spec(NamedSharding(mesh, length_spec(1))),)

    def part(query: Array, key: Array, value: Array, segments: Segments, kernel: Any) -> Array:
        query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        query, key, value = (jnp.moveaxis(array, 1, 2) for array in (query, key, value))
        ids = None if segments is None else splash_attention_kernel.SegmentIds(segments.queries, segments.keys)
        return jnp.moveaxis(jax.vmap(kernel)(query, key, value, ids), 2, 1)

    return by_device(part, query_BTNH, key_BSKH, value_BSKH, segments, (kernel,), places)


def splash_block(length: int) -> int | None:
    """Queries, and keys, that splash takes at a time of rows of `length` tokens; None where no block divides them."""
    piece = length // piece_count()
    fitting = (block for block in _SPLASH_BLOCKS if piece % block == 0)
    return None if length % piece_count() else next(fitting, None)


class _CausalMask(splash_attention_mask.CausalMask):
    """Tells splash of a block that is seen or hidden as a whole without making it: of 131,072 tokens, 65,536 blocks are
    looked at, which takes a minute otherwise. All that is done with a block is to ask whether any or all of it is
    seen, and where these differ, to compare it with others."""

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        queries, keys = self.q_sequence[idx[0]], idx[1]
        if queries.min() >= keys.stop - 1:
            return np.ones((1, 1), np.bool_)
        if queries.max() < keys.start:
            return np.zeros((1, 1), np.bool_)
        return super().__getitem__(idx)


def _splash_kernel(length: int, heads: int) -> splash_attention_kernel.SplashAttentionKernel:
    """The kernel for rows of `length` tokens, with what each of the devices that split a row has to visit of it."""
    mask = _CausalMask((length, length))
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
        residual_checkpoint_name=CHECKPOINT_NAME,
        interpret=platform() == "cpu",
    )


def triton(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """FlashAttention-2 (Dao 2023, arXiv:2307.08691) as JAX's Pallas kernel for Triton: blocks after a query are
    skipped, softmax statistics and sums are float32 (of the backward pass, the products of each output and its gradient
    are rounded to the type of the query before they are added). The kernel knows neither grouped queries nor an offset
    of the queries: keys and values are repeated for it, and rows that are split are exchanged for heads. It takes the
    documents of the keys for those of the queries too, which they are in whole rows."""
    return by_heads(grouped_triton, query_BTNH, key_BSKH, value_BSKH, segments)


@functools.cache
def _kernel() -> Any:
    """The module of the kernel, which from JAX 0.12 on complains when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention
    return attention


@jax.custom_vjp
def grouped_triton(query: Array, key: Array, value: Array, segments: Segments) -> Array:
    return _triton_forward(query, key, value, segments)[0]


def _triton_forward(query: Array, key: Array, value: Array, segments: Segments) -> tuple[Array, Any]:
    group = query.shape[2] // key.shape[2]
    ids = None if segments is None else segments.keys
    repeated = (jnp.repeat(array, group, axis=2) for array in (key, value))
    results: Any = _kernel().mha(query, *repeated, ids, **_triton_settings(query), return_residuals=True)
    mixed, statistics = (checkpoint_name(array, CHECKPOINT_NAME) for array in results)
    # What is kept has the heads as they came: repeated they would be `group` times as much.
    return mixed, (query, key, value, ids, mixed, statistics)


def _triton_backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, ids, mixed, statistics = kept
    B, S, K, H = key.shape
    group = query.shape[2] // K
    repeated = (jnp.repeat(array, group, axis=2) for array in (key, value))
    # The kernel's own rule, so that its statistics could be named above: `mha` itself would make them again.
    by_query, *by_head, _ = _kernel()._mha_backward(
        **_triton_settings(query),
        backward_pass_impl="triton",
        num_warps=TRITON_BACKWARD_WARPS,
        num_stages=2,
        grid=None,
        debug=False,
        return_residuals=False,
        res=(query, *repeated, ids, mixed, statistics),
        do=gradient,
    )
    summed = (array.reshape(B, S, K, group, H).sum(axis=3, dtype=jnp.float32) for array in by_head)
    by_key, by_value = (array.astype(key.dtype) for array in summed)
    return by_query, by_key, by_value, None


grouped_triton.defvjp(_triton_forward, _triton_backward)


def _triton_settings(query: Array) -> dict[str, Any]:
    """What the kernel is told forward and backward."""
    blocks = triton_blocks(query.shape[1], query.shape[3], query.dtype, _shared_memory())
    sizes = _kernel().BlockSizes(
        block_q=blocks.queries,
        block_k=blocks.keys,
        block_q_dkv=blocks.backward,
        block_kv_dkv=blocks.backward,
        block_q_dq=blocks.backward,
        block_kv_dq=blocks.backward,
    )
    interpret = platform() == "cpu"
    return {"sm_scale": query.shape[3] ** -0.5, "causal": True, "block_sizes": sizes, "interpret": interpret}


def _shared_memory() -> int:
    known = chip()
    return (known and known.shared_memory) or SMALLEST_SHARED_MEMORY


class TritonBlocks(NamedTuple):
    """What is taken at a time."""

    queries: int
    keys: int
    backward: int
    """Queries, and keys, of the backward pass."""


def triton_blocks(length: int, head_size: int, dtype: Any, shared_memory: int) -> TritonBlocks:
    """The largest blocks that divide the length, fit the shared memory, and have sums of at most 128 numbers a thread,
    half of its registers: with more, the compiler puts some of them into the memory of the device. (So Triton and ptxas
    have it for an H100: heads of up to 128 numbers in bfloat16 keep to their registers. That larger blocks are faster,
    as less is read for them, was not measured.)

    Args:
        shared_memory: bytes that a block of the kernel can have.
    """
    head, numbers, itemsize = head_bytes(head_size, dtype), next_power_of_2(head_size), jnp.dtype(dtype).itemsize

    def fits_forward(queries: int, keys: int) -> bool:
        # Queries, and keys and values twice, as the next ones are read meanwhile.
        held = head * (queries + 4 * keys) + 4 * keys
        threads = 32 * (4 if head_size <= 64 else 8)  # JAX's choice
        return held <= shared_memory and queries * (numbers + keys) <= _SUMS * threads

    def fits_backward(size: int) -> bool:
        # Queries and gradients twice, the scores of a block, and for the products of whole warp groups keys and values.
        held = head * (6 if size >= 64 else 4) * size + itemsize * size**2 + 12 * size
        return held <= shared_memory and 2 * size * (numbers + size) <= _SUMS * 32 * TRITON_BACKWARD_WARPS

    forward = (pair for pair in _TRITON_FORWARD if fits_forward(*pair) and not any(length % size for size in pair))
    backward = (size for size in _TRITON_BACKWARD if fits_backward(size) and length % size == 0)
    smallest = TRITON_MULTIPLE
    return TritonBlocks(*next(forward, (smallest, smallest)), next(backward, smallest))


def head_bytes(head_size: int, dtype: Any) -> int:
    """Bytes of a head as Triton holds it, padded to a power of two."""
    return next_power_of_2(head_size) * jnp.dtype(dtype).itemsize
