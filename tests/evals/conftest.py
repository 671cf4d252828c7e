"""A small random model and a tokenizer for the tests of evaluations."""

from dataclasses import dataclass
from typing import Any

import jax
import pytest

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import Tokenizer, train_tokenizer
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel, language_model

TEXTS = [f"Document {number} says that {number} times two is {2 * number}, and no more. " * 4 for number in range(40)]


@dataclass(frozen=True)
class Small:
    """A model of random weights with a context of 64 tokens."""

    model: LanguageModel
    tokenizer: Tokenizer

    def params(self, mesh: Any) -> Any:
        shardings = sharding.shardings_of(mesh, self.model.shapes(), self.model.axes)
        return jax.jit(self.model.init, out_shardings=shardings)(jax.random.key(0))


@pytest.fixture(scope="session")
def small() -> Small:
    config = LlamaConfig(
        300, width=32, mlp_width=32, num_layers=2, num_heads=2, num_kv_heads=2, head_size=16, context_length=64
    )
    return Small(language_model(config, ComputeConfig()), train_tokenizer(TEXTS, 300))


@pytest.fixture
def one_device(small):
    """A mesh of one device, in use, and the small model's parameters on it."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield small.params(mesh)
