"""The table of weights agrees with the parameters that the model declares."""

import pytest

from llama_jax.checkpoints.formats.weights import stored_shape, weight_names
from llama_jax.core import tree
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

CONFIG = {"vocab_size": 300, "width": 32, "mlp_width": 40, "num_layers": 3, "num_heads": 4, "head_size": 6}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_table_has_the_shapes_that_the_model_declares(tied, kv_heads) -> None:
    config = LlamaConfig(**CONFIG, num_kv_heads=kv_heads, tie_embeddings=tied)
    declared = tree.flatten(language_model(config, ComputeConfig()).shapes())
    assert {name.ours: stored_shape(config, name) for name in weight_names(config)} == {
        path: leaf.shape for path, leaf in declared.items()
    }
