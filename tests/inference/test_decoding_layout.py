"""The layout of parameters for decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core import tree
from llama_jax.inference.layout import decoding_params
from llama_jax.model.cache import empty_cache
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.model.transposed import Transposed

CONFIG = LlamaConfig(vocab_size=64, width=32, mlp_width=48, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.slow
def test_decoding_from_it_is_the_full_forward_pass(tied) -> None:
    model = language_model(LlamaConfig(**{**vars(CONFIG), "tie_embeddings": tied}), ComputeConfig())
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 20), 0, 64)
    expected = model.logits(params, tokens)
    layers = decoding_params(model, params, consume=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    caches, start = empty_cache(model.config, 3, 20, jnp.dtype("float32")), jnp.zeros(3, jnp.int32)
    found = []
    for begin, end in ((0, 18), (18, 19), (19, 20)):
        hidden, caches = model.decode(layers, tokens[:, begin:end], caches, start + begin)
        found.append(model.unembed(model.head(layers), hidden))
    np.testing.assert_allclose(jnp.concatenate(found, axis=1)[..., :64], expected, atol=2e-5)


def test_kernels_of_one_input_are_one_array_on_a_cpu() -> None:
    model = language_model(CONFIG, ComputeConfig())
    params = model.init(jax.random.key(0))
    layers = decoding_params(model, params)
    attention = layers["layers_1"]["attention"]
    assert attention["k_proj"]["kernel"] == Transposed(None, 32, 16)
    assert attention["v_proj"]["kernel"] == Transposed(None, 48, 16)
    kernels = [params["layers"]["attention"][f"{name}_proj"]["kernel"][1].T for name in "qkv"]
    np.testing.assert_array_equal(attention["q_proj"]["kernel"].array, np.concatenate(kernels))
    # No array is there twice: as many numbers as there are parameters.
    assert sum(leaf.size for leaf in jax.tree.leaves(layers)) == tree.size(params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
