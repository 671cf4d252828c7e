"""Train a LLaMA from scratch on text: `python -m llama_jax.pretrain`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("pretrain")

import functools
from collections.abc import Sequence
from typing import Any

from llama_jax.core.processes.distributed import start_up
from llama_jax.objectives.next_token import next_token
from llama_jax.runs.description import print_dry_run
from llama_jax.runs.methods import all_parameters, build_program
from llama_jax.runs.resuming import opened_run, with_schedule
from llama_jax.supervised.config import PretrainConfig
from llama_jax.supervised.pretraining import train_on_text
from llama_jax.training.program import Program


def build(config: PretrainConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    objective = functools.partial(next_token, z_loss=config.training.z_loss)
    method = all_parameters(config.training.trainable)
    architecture, length = config.model.architecture, config.data.sequence_length
    return build_program(config, method, objective, architecture, length, devices)


def pretrain(config: PretrainConfig) -> None:
    """Write a run directory: checkpoints of the model, its metrics and their curves, a log, and the tokenizer if it was
    trained for the run."""
    who = start_up(config.distributed)
    if config.dry_run:
        print_dry_run(who, build(config), config.model.size)
        return
    config = with_schedule(config)
    with opened_run(config, "pretrain") as run:
        run.say(who)
        train_on_text(config, run, build(config))
