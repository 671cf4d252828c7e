"""Fine-tune a model on instructions with LoRA: `python -m llama_jax.lora`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("lora")

from collections.abc import Sequence
from typing import Any

import jax

from llama_jax.checkpoints.adapters.adapter import ADAPTER_FILE, adapter_config_json
from llama_jax.core import tree
from llama_jax.core.arrays import PRNGKeyArray, PyTree
from llama_jax.core.errors import UserError
from llama_jax.model import paths
from llama_jax.model.config import AdapterConfig
from llama_jax.model.llama import LanguageModel
from llama_jax.model.lora import adapter_axes, adapter_decays, init_adapter, is_trainable, with_adapter, without_adapter
from llama_jax.model.lora import partition as parted
from llama_jax.model.quantized import StorageType, store_as, stored_axes
from llama_jax.runs.config import FREE_ON_RESUME
from llama_jax.supervised.config import LoraConfig
from llama_jax.supervised.fine_tuning import Method, architecture_of, fine_tune
from llama_jax.supervised.fine_tuning import build as build_run
from llama_jax.training.program import Partition, Program


def build(config: LoraConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return build_run(config, _method(config), architecture_of(config), config.data.sequence_length, devices)


def lora(config: LoraConfig) -> None:
    """Run the command."""
    fine_tune(config, _method(config), command="lora", free=FREE_ON_RESUME)


def _method(config: LoraConfig) -> Method:
    return method(config.lora, config.model_dtype, config.training.peak_learning_rate)


def method(config: AdapterConfig, store: StorageType, peak_learning_rate: float) -> Method:
    """LoRA as a partition of the parameters: the factors, below `lora/`, and the modules to save train.

    Args:
        store: type in which the base is kept.
        peak_learning_rate: of the modules to save, and of the factors unless the config says otherwise.
    """
    trains = is_trainable(config)

    def begin(base: PyTree, key: PRNGKeyArray) -> PyTree:
        if "lora" in base:
            raise UserError("--model: is an adapter over a base; merge the two first, with llama_jax.convert")
        return tree.join(*parted(with_adapter(base, init_adapter(config, base, key)), config))

    def partition(model: LanguageModel) -> Partition:
        def init(key: PRNGKeyArray) -> PyTree:
            of_base, of_adapter = jax.random.split(key)
            return begin(store_as(model.init(of_base), store), of_adapter)

        base, adapter = without_adapter(jax.eval_shape(lambda: init(jax.random.key(0))))
        axes = with_adapter(stored_axes(model.axes, base), adapter_axes(adapter, model.axes))
        decays = model.decays | adapter_decays(adapter)
        return Partition(init, axes, decays, trains, None if config.learning_rate is None else rate_of)

    def rate_of(path: str) -> float:
        own = config.learning_rate
        return own / peak_learning_rate if own is not None and paths.is_adapter(path) else 1.0

    return Method(
        partition=partition,
        begin=lambda base, key: jax.jit(begin)(base, key),
        store=store,
        dropout=config.dropout,
        item="adapter",
        is_saved=lambda path: paths.is_adapter(path) or trains(path),
        files={ADAPTER_FILE: adapter_config_json(config)},
    )
