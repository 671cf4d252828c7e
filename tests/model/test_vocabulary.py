from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.model.vocabulary import grow_vocabulary

TINY = LlamaConfig(
    vocab_size=3, width=2, mlp_width=4, num_layers=2, num_heads=1, num_kv_heads=1, head_size=2, vocab_multiple=4
)
ROWS = np.array([[1.0, 0.0], [2.0, 6.0], [3.0, 0.0], [99.0, 99.0]], np.float32)  # the last is padding
OTHER = jnp.full((2, 2), 7.0)


def params() -> dict:
    return {
        "embedding": {"table": jnp.asarray(ROWS)},
        "layers": {"norm": OTHER},
        "lm_head": {"kernel": jnp.asarray(10 * ROWS.T)},
    }


def test_new_rows_are_the_mean_of_the_real_ones():
    config, grown = grow_vocabulary(params(), TINY, 6)
    assert (config.vocab_size, config.padded_vocab_size) == (6, 8)
    expected = [[1, 0], [2, 6], [3, 0], [2, 2], [2, 2], [2, 2], [0, 0], [0, 0]]
    np.testing.assert_array_equal(grown["embedding"]["table"], expected)
    np.testing.assert_array_equal(grown["lm_head"]["kernel"], 10 * np.array(expected).T)
    np.testing.assert_array_equal(grown["layers"]["norm"], OTHER)


def test_padding_is_used_first():
    config, grown = grow_vocabulary(params(), TINY, 4)
    assert config.padded_vocab_size == 4
    np.testing.assert_array_equal(grown["embedding"]["table"][3], [2, 2])


def test_nothing_changes_where_nothing_is_added():
    config, grown = grow_vocabulary(params(), TINY, 3)
    assert config == TINY
    np.testing.assert_array_equal(grown["embedding"]["table"][:3], ROWS[:3])


def test_tied_embeddings_and_low_precision_stay_as_they_are():
    tied = {"embedding": {"table": jnp.full((4, 2), 0.1, jnp.bfloat16)}}
    _, grown = grow_vocabulary(tied, TINY, 5)
    assert grown["embedding"]["table"].dtype == jnp.bfloat16
    assert list(grown) == ["embedding"]
    np.testing.assert_array_equal(grown["embedding"]["table"][4], tied["embedding"]["table"][0])


def test_jitted_it_gives_what_the_larger_model_holds():
    def shapes(config: LlamaConfig) -> dict:
        return language_model(config, ComputeConfig(dtype="float32")).shapes()

    grown = jax.eval_shape(lambda tree: grow_vocabulary(tree, TINY, 6)[1], shapes(TINY))
    assert grown == shapes(replace(TINY, vocab_size=6))


def test_tokens_are_never_dropped():
    with pytest.raises(UserError, match="vocab_size: 2 is less than the model's 3"):
        grow_vocabulary(params(), TINY, 2)
