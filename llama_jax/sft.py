"""Fine-tune all parameters of a model on instructions: `python -m llama_jax.sft`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("sft")

from collections.abc import Sequence
from typing import Any

from llama_jax.runs.methods import Method, all_parameters
from llama_jax.supervised import fine_tuning
from llama_jax.supervised.config import SftConfig
from llama_jax.supervised.instructions import instructions
from llama_jax.training.program import Program


def build(config: SftConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return fine_tuning.build(config, _method(config), instructions(config), devices)


def sft(config: SftConfig) -> None:
    """Write a run directory: checkpoints of the tuned model, its metrics and their curves, a log, and answers to fixed
    prompts."""
    fine_tuning.fine_tune(config, _method(config), instructions(config), command="sft")


def _method(config: SftConfig) -> Method:
    return all_parameters(config.training.trainable)
