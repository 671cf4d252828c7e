"""Our adapters compute and learn what PEFT's do, on numbers recorded by `tests/oracle/record_peft.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_adapters import ADAPTERS, factors, stretch
from small_llamas import BASE, SHAPES, TOKENS
from small_parameters import parameters
from sweeps import some

from llama_jax.core import tree
from llama_jax.core.batches import TokenBatch
from llama_jax.model import lora
from llama_jax.model.config import AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token

ORACLE = Path(__file__).parents[1] / "oracle"

RECORDED = np.load(ORACLE / "peft_gradients.npz")
CONFIG = LlamaConfig.from_json(BASE | SHAPES["grouped_query"])
MODEL = language_model(CONFIG, ComputeConfig())


def adapted(name: str) -> tuple[dict, AdapterConfig]:
    """Base and adapter of the formula."""
    settings = dict(ADAPTERS[name])
    modules = settings.pop("modules")
    config = AdapterConfig(**settings, target_modules=tuple(f"layers/{module}" for module in modules))
    base = parameters(CONFIG)
    leaves = tree.flatten(lora.init_adapter(config, base, jax.random.key(0)))
    for module in modules:
        path = f"layers/{module}"
        inputs, outputs = leaves[f"{path}/a"].shape[1], leaves[f"{path}/b"].shape[2]
        pairs = [factors(module, layer, inputs, outputs, config.rank) for layer in range(CONFIG.num_layers)]
        leaves[f"{path}/a"], leaves[f"{path}/b"] = (jnp.stack(parts) for parts in zip(*pairs, strict=True))
        if config.dora:
            leaves[f"{path}/magnitude"] *= np.stack([stretch(module, layer, outputs) for layer in range(2)])
    return lora.with_adapter(base, tree.unflatten(leaves)), config


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_equal_those_of_peft(name: str) -> None:
    params, _ = adapted(name)
    logits = jax.jit(MODEL.logits)(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, RECORDED[f"{name}/logits"], atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", some(ADAPTERS, ("dora",)))
def test_gradients_equal_those_of_peft(name: str) -> None:
    """Of the mean loss over all tokens but each row's first; DoRA's lengths are constants there too."""
    params, config = adapted(name)
    tokens = np.pad(TOKENS, ((0, 0), (0, 1)))
    ones = jnp.ones(TOKENS.shape, jnp.int32)
    weights = ones.astype(jnp.float32).at[:, -1].set(0)
    positions = jnp.tile(jnp.arange(TOKENS.shape[1]), (2, 1))
    batch = TokenBatch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=weights,
        segment_ids=ones,
        positions=positions,
        normalizer=weights.sum(),
    )
    trainable, frozen = lora.partition(params, config)
    gradients, metrics = jax.jit(jax.grad(next_token(MODEL), has_aux=True))(trainable, frozen, batch, None)
    np.testing.assert_allclose(metrics["loss"], RECORDED[f"{name}/loss"], rtol=1e-6)
    checked = 0
    for path, gradient in tree.flatten(gradients).items():
        module, leaf = path.removeprefix("lora/layers/").rsplit("/", 1)
        for layer in range(CONFIG.num_layers):
            expected = RECORDED[f"{name}/{module}/{layer}/{leaf}"]
            np.testing.assert_allclose(gradient[layer], expected, atol=2e-6 + 1e-4 * np.abs(expected).max(), rtol=0)
            checked += 1
    assert checked + 2 == sum(key.startswith(f"{name}/") for key in RECORDED)
