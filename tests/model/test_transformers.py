"""Our logits are those of Hugging Face transformers, on numbers recorded by `tests/oracle/record_transformers.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_llamas import BASE, SHAPES, TOKENS
from small_parameters import parameters
from sweeps import some

from llama_jax.inference.layout import decoding_params
from llama_jax.model.cache import empty_cache
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

ORACLE = Path(__file__).parents[1] / "oracle"

RECORDED = np.load(ORACLE / "transformers_logits.npz")


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_those_of_transformers(name: str) -> None:
    config = LlamaConfig.from_json(BASE | SHAPES[name])
    model = language_model(config, ComputeConfig())
    params = parameters(config)
    hidden = jax.jit(model.hidden)(params, jnp.asarray(TOKENS))
    logits = model.unembed(model.head(params), hidden)[..., : config.vocab_size]
    np.testing.assert_allclose(logits, RECORDED[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", some(SHAPES, ("grouped_query", "llama3.1_rope")))
@pytest.mark.slow
def test_cached_decoding_gives_the_logits_of_transformers(name: str) -> None:
    """Prefill of 20 tokens, then 28 single steps, must equal the full forward pass at every position."""
    config = LlamaConfig.from_json(BASE | SHAPES[name])
    model = language_model(config, ComputeConfig())
    params = decoding_params(model, parameters(config))
    caches = empty_cache(config, 2, 64, jnp.dtype("float32"))
    tokens = jnp.asarray(TOKENS)
    hidden, caches = model.decode(params, tokens[:, :20], caches, jnp.zeros(2, jnp.int32))
    pieces = [hidden]
    step = jax.jit(model.decode)
    for place in range(20, tokens.shape[1]):
        hidden, caches = step(params, tokens[:, place : place + 1], caches, jnp.full(2, place, jnp.int32))
        pieces.append(hidden)
    logits = model.unembed(model.head(params), jnp.concatenate(pieces, axis=1))[..., : config.vocab_size]
    np.testing.assert_allclose(logits, RECORDED[name], atol=2e-5, rtol=0)
