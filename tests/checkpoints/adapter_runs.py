"""Adapters made by hand, and runs that hold them as `lora` writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.checkpoints.adapters.adapter import (
    ADAPTER_FILE,
    ADAPTER_ITEM,
    BASE_FILE,
    Adapter,
    BaseIdentity,
    adapter_config_json,
    linears,
)
from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core import tree
from llama_jax.model.config import AdapterConfig, LlamaConfig


def random_adapter(
    config: LlamaConfig, *, seed: int = 0, size: float = 0.3, saved: tuple[str, ...] = (), **settings: Any
) -> Adapter:
    """An adapter that is far from the identity; `settings` are those of `AdapterConfig`."""
    draw = np.random.default_rng(seed)
    adapter_config = AdapterConfig(**settings)
    L, R = config.num_layers, adapter_config.rank
    leaves: dict[str, np.ndarray] = {}
    for inner, _, (inputs, outputs) in linears(config):
        if inner.split("/")[1] not in adapter_config.target_modules:
            continue
        for part, shape in {"a": (L, inputs, R), "b": (L, R, outputs)}.items():
            leaves[f"layers/{inner}/{part}"] = draw.standard_normal(shape, np.float32) * np.float32(size)
        if adapter_config.dora:
            leaves[f"layers/{inner}/magnitude"] = draw.uniform(0.5, 1.5, (L, outputs)).astype(np.float32)
        leaves[f"layers/{inner}/scale"] = np.full(L, adapter_config.scale, np.float32)
    V, D = config.padded_vocab_size, config.width
    shapes = {"embedding/table": (V, D), "lm_head/kernel": (D, V)}
    modules = {path: draw.standard_normal(shapes[path], np.float32) for path in saved}
    return Adapter(tree.unflatten(leaves), adapter_config, modules, "by hand")


def save_adapter_run(
    run: Path, base: BaseIdentity, adapter: Adapter, *, step: int = 5, files: Mapping[str, bytes] | None = None
) -> Path:
    """A run with one checkpoint of an adapter."""
    leaves = {f"lora/{path}": leaf for path, leaf in tree.flatten(adapter.factors).items()}
    leaves |= adapter.saved_modules
    plain = {
        "model/config.json": json.dumps(base.config.to_json()).encode(),
        BASE_FILE: base.to_json(),
        ADAPTER_FILE: adapter_config_json(adapter.config),
    }
    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig(), say=pytest.fail)
    items = {ADAPTER_ITEM: jax.tree.map(jnp.asarray, tree.unflatten(leaves)), "optimizer": {"count": jnp.zeros(3)}}
    checkpoints.save(step, items, plain | {f"model/{name}": content for name, content in (files or {}).items()}, {})
    checkpoints.wait()
    return run
