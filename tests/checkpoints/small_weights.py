"""A small LLaMA in memory, seen as the weights of a file, and what the tests of formats ask about any weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from llama_jax.checkpoints.formats.weights import WeightName, Weights, padded, tensors_of, weight_names
from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

SMALL = LlamaConfig(
    vocab_size=40, width=16, mlp_width=24, num_layers=2, num_heads=4, num_kv_heads=2, head_size=4, context_length=2048
)
FLOAT32, FLOAT16, BFLOAT16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class SmallWeights:
    """Random weights; matrices in `kind`, norms in `norm_kind`."""

    config: LlamaConfig = SMALL
    kind: np.dtype = FLOAT32
    norm_kind: np.dtype = FLOAT32
    files: Mapping[str, bytes] = field(default_factory=dict)
    source: str = "small"

    def dtype(self, name: WeightName) -> np.dtype:
        return self.kind if name.transposed else self.norm_kind

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        seed = [ord(letter) for letter in name.ours] + [layer or 0]
        values = np.random.default_rng(seed).standard_normal(name.shape(self.config), np.float32)
        return (values * 0.3).astype(self.dtype(name))


def of_kind(kind: np.dtype, **changes: object) -> SmallWeights:
    """Small weights, all of one type, of a configuration with `changes`."""
    return SmallWeights(dataclasses.replace(SMALL, **changes), kind, kind)


def assert_same(left: Weights, right: Weights, *, but: Mapping[str, object] | None = None) -> None:
    """The same architecture, apart from `but`, and bit by bit the same tensors of the same types."""
    assert left.config == dataclasses.replace(right.config, **(but or {}))
    for name, layer in tensors_of(right.config):
        assert left.dtype(name) == right.dtype(name), name.ours
        first, second = left.read(name, layer), right.read(name, layer)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), name.ours
        assert first.tobytes() == second.tobytes(), (name.ours, layer)


def read_all(weights: Weights) -> None:
    """Read every tensor, as a conversion does."""
    for name, layer in tensors_of(weights.config):
        weights.read(name, layer)


def params_of(weights: Weights) -> PyTree:
    """The weights as our parameters, float32."""
    leaves = {}
    for name in weight_names(weights.config):
        layers = range(weights.config.num_layers) if name.per_layer else (None,)
        tensors = [padded(weights.read(name, layer), name, weights.config) for layer in layers]
        leaves[name.ours] = jnp.asarray(np.stack(tensors) if name.per_layer else tensors[0], jnp.float32)
    return tree.unflatten(leaves)


def logits(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """What our model computes with these weights, float32 [B, T, V]."""
    model = language_model(weights.config, ComputeConfig())
    return np.asarray(jax.jit(model.logits)(params_of(weights), jnp.asarray(tokens, jnp.int32)))
