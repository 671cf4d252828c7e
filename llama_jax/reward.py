"""Train a reward model on preferences: `python -m llama_jax.reward`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("reward")

from collections.abc import Sequence
from typing import Any

from llama_jax.supervised import fine_tuning
from llama_jax.supervised.preference_config import RewardConfig
from llama_jax.supervised.preferences import scores
from llama_jax.training.program import Program


def build(config: RewardConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return fine_tuning.build(config, *scores(config), devices)


def reward(config: RewardConfig) -> None:
    """Write a run directory: checkpoints of the reward model with its scale, its metrics and their curves, a log, a
    picture of the scores of held-out answers, and a verdict."""
    fine_tuning.fine_tune(config, *scores(config), command="reward")
