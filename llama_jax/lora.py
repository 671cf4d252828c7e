"""Fine-tune a model on instructions with LoRA: `python -m llama_jax.lora`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("lora")

from collections.abc import Sequence
from typing import Any

from llama_jax.runs.methods import Method, low_rank_adapter
from llama_jax.supervised import fine_tuning
from llama_jax.supervised.config import LoraConfig
from llama_jax.supervised.instructions import instructions
from llama_jax.training.program import Program


def build(config: LoraConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return fine_tuning.build(config, _method(config), instructions(config), devices)


def lora(config: LoraConfig) -> None:
    """Write a run directory: checkpoints of the adapter, its metrics and their curves, a log, and answers to fixed
    prompts."""
    fine_tuning.fine_tune(config, _method(config), instructions(config), command="lora")


def _method(config: LoraConfig) -> Method:
    return low_rank_adapter(config.lora, config.model_dtype, config.training.peak_learning_rate)
