"""Attention of new tokens over the keys and values of a cache."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, Int
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
    """Softmax(Q K^T / sqrt(H)) V under the causal mask, of queries at the given positions of their rows.

    As many blocks are read as the longest row needs: of the ways to do it, one for each number of blocks, a step takes
    one, so that no program is compiled for a length.

    Args:
        rows: of the cache, whose queries they are; None: all.
        longest: slots that are read at the least.
    """
    blocks = cache.blocks
    ends = np.cumsum([block.size for block in blocks])
    ways = [_way(count) for count in range(1, len(blocks) + 1)]
    if len(ways) == 1:
        return ways[0](query_BTNH, blocks, positions, rows)
    index = jnp.searchsorted(jnp.asarray(ends[:-1], jnp.int32), longest.astype(jnp.int32))
    return jax.lax.switch(index, ways, query_BTNH, blocks, positions, rows)


def _way(count: int) -> Callable[..., Array]:
    def mixed(query: Array, blocks: Sequence[Block], positions: Array, rows: Array | None) -> Array:
        return _mixed(query, [block.rows(rows) for block in blocks[:count]], positions)

    return mixed


def _mixed(
    query_BTNH: Float[Array, "R T N H"], blocks: Sequence[Block], positions: Int[Array, "R T"]
) -> Float[Array, "R T N H"]:
    R, T, N, H = query_BTNH.shape
    K, dtype = blocks[0].key.shape[1], query_BTNH.dtype
    G = N // K
    # The queries of a group below each other: a product for each row and key/value head.
    query = jnp.moveaxis(query_BTNH.reshape(R, T, K, G, H), 1, 3).reshape(R, K, G * T, H)
    scores = []
    for block in blocks:
        product = jnp.einsum("RKTH,RKHS->RKTS", query, block.key.astype(dtype), preferred_element_type=jnp.float32)
        scores.append(product if block.key_scale is None else product * block.key_scale)
    together = jnp.concatenate(scores, axis=-1).reshape(R, K, G, T, -1) * H**-0.5
    visible = positions[:, :, None] >= jnp.arange(together.shape[-1])[None, None]
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
