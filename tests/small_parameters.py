"""The weights of the small LLaMAs in our tree."""

import jax.numpy as jnp
import numpy as np
from small_llamas import weight

from llama_jax.checkpoints.formats.weights import padded, to_ours, weight_names
from llama_jax.core import tree
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model


def parameters(config: LlamaConfig) -> dict:
    """The formula's weights in our tree."""
    leaves = {}
    for name in weight_names(config):
        there = name.shape(config)[:: -1 if name.transposed else 1]
        tensors = [
            padded(to_ours(name, weight(name.hugging_face.format(layer), there), config, "hugging_face"), name, config)
            for layer in (range(config.num_layers) if name.per_layer else (None,))
        ]
        leaves[name.ours] = np.stack(tensors) if name.per_layer else tensors[0]
    assert leaves.keys() == tree.flatten(language_model(config, ComputeConfig()).shapes()).keys()
    return tree.unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
