"""Fine-tune all parameters of a model on instructions: `python -m llama_jax.sft`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("sft")

from collections.abc import Sequence
from typing import Any

from llama_jax.core.arrays import PRNGKeyArray, PyTree
from llama_jax.model.lora import merge
from llama_jax.runs.config import FREE_ON_RESUME
from llama_jax.supervised.config import SftConfig
from llama_jax.supervised.fine_tuning import Method, architecture_of, fine_tune
from llama_jax.supervised.fine_tuning import build as build_run
from llama_jax.training.program import Partition, Program


def build(config: SftConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return build_run(config, _method(config), architecture_of(config), config.data.sequence_length, devices)


def sft(config: SftConfig) -> None:
    """Run the command."""
    fine_tune(config, _method(config), command="sft", free=FREE_ON_RESUME)


def _method(config: SftConfig) -> Method:
    def begin(params: PyTree, key: PRNGKeyArray) -> PyTree:
        del key  # nothing is drawn
        return merge(params)  # of a model with an adapter, what the two make together is trained on

    return Method(partition=lambda model: Partition.of(model, config.training.trainable), begin=begin)
