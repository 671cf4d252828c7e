"""A small model with an adapter that is not the identity."""

import dataclasses

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.model import lora
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model

CONFIG = dataclasses.replace(SIZES["tiny"], num_kv_heads=2)
MODEL = language_model(CONFIG, ComputeConfig())
EVERY_LINEAR = AdapterConfig(target_modules=("all-linear",), dropout=0.0)


def base(seed: int = 0) -> PyTree:
    """Fresh parameters."""
    return jax.jit(MODEL.init)(jax.random.key(seed))


def adapter(config: AdapterConfig, params: PyTree, seed: int = 1) -> PyTree:
    """An adapter of which every factor and magnitude has been moved."""
    leaves = tree.flatten(jax.jit(lambda p: lora.init_adapter(config, p, jax.random.key(seed)))(params))
    for number, (path, leaf) in enumerate(leaves.items()):
        noise = jax.random.normal(jax.random.key(100 * seed + number), leaf.shape)
        if path.endswith("/b"):
            leaves[path] = 0.05 * noise
        elif path.endswith("/magnitude"):
            leaves[path] = leaf * (1 + 0.1 * jnp.tanh(noise))
    return tree.unflatten(leaves)
