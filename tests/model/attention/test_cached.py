"""Attention over a cache in blocks, against all keys at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.model.attention.cached import cached_attention
from llama_jax.model.cache import block_sizes, empty_cache
from llama_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(num_layers=1, num_heads=4, num_kv_heads=2, head_size=8)
SLOTS = 700


def test_blocks_double_what_is_there() -> None:
    assert block_sizes(100) == [100]
    assert block_sizes(256) == [256]
    assert block_sizes(1500) == [256, 256, 512, 476]


@pytest.mark.parametrize(("kind", "error"), [("float32", 2e-6), ("int8", 2e-2)])
@pytest.mark.parametrize("lengths", [[256, 3], [257, 100], [650, 40]])
def test_a_query_sees_the_tokens_before_it_whichever_blocks_hold_them(kind, error, lengths) -> None:
    (cache,) = empty_cache(CONFIG, 3, SLOTS, jnp.dtype(kind))
    # What was never written must not matter.
    cache = jax.tree.map(lambda leaf: leaf + jnp.asarray(7, leaf.dtype), cache)
    keys, values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, SLOTS, 2, 8)), jnp.float32)
    rows = jnp.array([2, 1])
    cut = [length - 1 for length in lengths]
    longest = max(cut)
    cache = cache.write(keys[:, :longest], values[:, :longest], rows, jnp.zeros(2, jnp.int32))
    key, value = (
        jnp.stack([of_row[at : at + 1] for of_row, at in zip(array, cut, strict=True)]) for array in (keys, values)
    )
    cache = cache.write(key, value, rows, jnp.asarray(cut))

    query = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 4, 8)), jnp.float32)
    found = jax.jit(cached_attention)(query, cache, jnp.asarray(cut)[:, None], rows, jnp.asarray(longest + 1))
    for row, length in enumerate(lengths):
        for head in range(4):
            scores = keys[row, :length, head // 2] @ query[row, 0, head] / np.sqrt(8)
            weights = np.exp(scores - scores.max())
            expected = weights @ values[row, :length, head // 2] / weights.sum()
            np.testing.assert_allclose(found[row, 0, head], expected, atol=error)


def test_tokens_of_no_row_are_written_nowhere() -> None:
    (cache,) = empty_cache(CONFIG, 2, 300, jnp.dtype("float32"))
    token = jnp.ones((2, 1, 2, 8))
    after = cache.write(token, token, jnp.array([2, 1]), jnp.array([0, 299]))
    found = np.concatenate([block.value for block in after.blocks], axis=2)
    assert found[0].sum() == 0 and found[1, :, :299].sum() == 0 and found[1, :, 299].sum() == 16
