"""Train a model on answers that are good or bad, each by itself: `python -m llama_jax.kto`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("kto")

from collections.abc import Sequence
from typing import Any

from llama_jax.supervised import fine_tuning
from llama_jax.supervised.implied_rewards import labels
from llama_jax.supervised.preference_config import KtoConfig
from llama_jax.supervised.preferences import preference_method
from llama_jax.training.program import Program


def build(config: KtoConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return fine_tuning.build(config, preference_method(config), labels(config), devices)


def kto(config: KtoConfig) -> None:
    """Write a run directory: checkpoints of the tuned model or of its adapter, metrics and their curves, a log, answers
    to fixed prompts, and a verdict on held-out answers."""
    fine_tuning.fine_tune(config, preference_method(config), labels(config), command="kto")
