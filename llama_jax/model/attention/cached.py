"""Attention of new tokens over the keys and values of a cache."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Bool, Float, Int
from llama_jax.model.attention.blocks import MASKED
from llama_jax.model.cache import Block, LayerCache


@jax.named_scope("scaled_dot_product_attention")
def cached_attention(
    query_BTNH: Float[Array, "R T N H"],
    cache: LayerCache,
    positions: Int[Array, "R T"],
    rows: Int[Array, "R"] | None,
    longest: Int[Array, ""],
) -> Float[Array, "R T N H"]:
    """Softmax(Q K^T / sqrt(H)) V under the causal mask, of queries at the given positions of their rows, whose own keys
    and values the cache holds already, pending or written.

    As many blocks are read as the longest row needs: of the ways to do it, one for each number of blocks, a step takes
    one, so that no program is compiled for a length.

    Args:
        rows: of the cache, whose queries they are; None: all.
        longest: slots that are read at the least.
    """
    blocks = cache.blocks
    if cache.pending is not None:
        return _beside_pending(query_BTNH, cache, positions, rows)
    ends = np.cumsum([block.size for block in blocks])
    ways = [_way(count) for count in range(1, len(blocks) + 1)]
    if len(ways) == 1:
        return ways[0](query_BTNH, blocks, positions, rows)
    index = jnp.searchsorted(jnp.asarray(ends[:-1], jnp.int32), longest.astype(jnp.int32))
    return jax.lax.switch(index, ways, query_BTNH, blocks, positions, rows)


def _way(count: int) -> Callable[..., Array]:
    def mixed(query: Array, blocks: Sequence[Block], positions: Array, rows: Array | None) -> Array:
        read = [block.rows(rows) for block in blocks[:count]]
        slots = jnp.arange(sum(block.size for block in read))
        return _mixed(query, read, positions[:, :, None] >= slots[None, None])

    return mixed


def _beside_pending(query: Array, cache: LayerCache, positions: Array, rows: Array | None) -> Array:
    read = [block.rows(rows) for block in cache.blocks]
    slots = jnp.arange(sum(block.size for block in read))
    before = jnp.broadcast_to(slots[None, None] < positions[:, :1, None], (*positions.shape, len(slots)))
    visible = jnp.concatenate([before, positions[:, :, None] >= positions[:, None]], axis=-1)
    return _mixed(query, [*read, read[0].of_tokens(*cache.pending)], visible)


def _mixed(
    query_BTNH: Float[Array, "R T N H"], blocks: Sequence[Block], visible: Bool[Array, "R T S"]
) -> Float[Array, "R T N H"]:
    R, T, N, H = query_BTNH.shape
    K, dtype = blocks[0].value.shape[1], query_BTNH.dtype
    G = N // K
    # The queries of a group below each other: a product for each row and key/value head.
    query = jnp.moveaxis(query_BTNH.reshape(R, T, K, G, H), 1, 3).reshape(R, K, G * T, H)
    scores = []
    for block in blocks:
        key = jnp.moveaxis(block.key, block.key_axis, 3).astype(dtype)
        product = jnp.einsum("RKTH,RKHS->RKTS", query, key, preferred_element_type=jnp.float32)
        if block.key_scale is not None:
            product = product * jnp.moveaxis(block.key_scale, block.key_axis, 3)
        scores.append(product)
    together = jnp.concatenate(scores, axis=-1).reshape(R, K, G, T, -1) * H**-0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], together, MASKED), axis=-1).reshape(R, K, G * T, -1)
    mixed, first = jnp.zeros((), jnp.float32), 0
    for block in blocks:
        part = weights[..., first : first + block.size]
        if block.value_scale is not None:
            part = part * jnp.swapaxes(block.value_scale, 2, 3)
        mixed = mixed + jnp.einsum(
            "RKTS,RKSH->RKTH", part.astype(dtype), block.value.astype(dtype), preferred_element_type=jnp.float32
        )
        first += block.size
    return jnp.moveaxis(mixed.astype(dtype).reshape(R, K, G, T, H), 3, 1).reshape(R, T, N, H)
