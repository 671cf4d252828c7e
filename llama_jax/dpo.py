"""Train a model on pairs of a better and a worse answer, without a reward model: `python -m llama_jax.dpo`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("dpo")

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_jax.objectives import preference
from llama_jax.objectives.preference import PairLoss
from llama_jax.supervised import fine_tuning
from llama_jax.supervised.fine_tuning import Supervision
from llama_jax.supervised.implied_rewards import pairs
from llama_jax.supervised.preference_config import DpoConfig
from llama_jax.supervised.preferences import preference_method
from llama_jax.training.program import Program

_LOSSES: Mapping[str, Callable[..., Any]] = {
    "sigmoid": preference.sigmoid,
    "length_normalized": preference.length_normalized,
    "hinge": preference.hinge,
    "ipo_tokens": preference.ipo_tokens,
    "ipo_sequence": preference.ipo_sequence,
    "conservative": preference.conservative,
    "robust": preference.robust,
    "apo_zero": preference.apo_zero,
    "simpo": preference.simpo,
    "orpo": preference.orpo,
}


def build(config: DpoConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return fine_tuning.build(config, preference_method(config), supervision(config), devices)


def dpo(config: DpoConfig) -> None:
    """Write a run directory: checkpoints of the tuned model or of its adapter, metrics and their curves, a log, answers
    to fixed prompts, and a verdict on held-out pairs."""
    fine_tuning.fine_tune(config, preference_method(config), supervision(config), command="dpo")


def supervision(config: DpoConfig) -> Supervision:
    """What the model is to learn."""
    loss: PairLoss = functools.partial(_LOSSES[config.loss], beta=config.beta, **config.loss_settings)
    return pairs(config, loss)
