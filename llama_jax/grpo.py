"""Train a model on rewards of what it samples, without a critic: `python -m llama_jax.grpo`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("grpo")

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.objectives.divergence import k3
from llama_jax.objectives.policy import (
    Divergence,
    LogRatios,
    Surrogate,
    clipped,
    clipped_policy,
    of_sequences,
    of_tokens,
    of_whole_sequences,
    weighted,
)
from llama_jax.rl import running
from llama_jax.rl.aggregation import Aggregation, fixed_length, rollout_token_mean, sequence_mean
from llama_jax.rl.config import GrpoConfig
from llama_jax.rl.groups import Advantages, group_advantages, leave_one_out_advantages
from llama_jax.rl.learners.grouped import GroupLearner
from llama_jax.rl.running import Recipe
from llama_jax.training.program import Program


class _Loss(NamedTuple):
    surrogate: Callable[..., Surrogate]
    bounds: Mapping[str, float]
    """How far the ratio may be below and above, unless the config says otherwise."""
    log_ratios: LogRatios
    aggregation: Aggregation
    advantages: Advantages


_AROUND = {"low": 0.2, "high": 0.2}

_LOSSES: Mapping[str, _Loss] = {
    "grpo": _Loss(clipped, _AROUND, of_tokens, sequence_mean, group_advantages),
    "dr_grpo": _Loss(clipped, _AROUND, of_tokens, fixed_length, functools.partial(group_advantages, scaling="none")),
    "dapo": _Loss(clipped, {"low": 0.2, "high": 0.28}, of_tokens, rollout_token_mean, group_advantages),
    "gspo": _Loss(clipped, {"low": 3e-4, "high": 4e-4}, of_sequences, sequence_mean, group_advantages),
    "cispo": _Loss(weighted, {"high": 5.0}, of_tokens, rollout_token_mean, group_advantages),
    "rloo": _Loss(clipped, _AROUND, of_whole_sequences, sequence_mean, leave_one_out_advantages),
}


def build(config: GrpoConfig, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return running.build(config, recipe(config), devices)


def grpo(config: GrpoConfig) -> None:
    """Write a run directory: checkpoints of the tuned model or of its adapter, metrics and their curves, and a verdict
    on held-out prompts."""
    running.learn_from_rewards(config, recipe(config), command="grpo")


def recipe(config: GrpoConfig) -> Recipe:
    """What the loss that the config names is made of."""
    loss = _LOSSES[config.loss]
    given = {"low": config.clip_low, "high": config.clip_high}
    surrogate = loss.surrogate(**{name: given[name] or default for name, default in loss.bounds.items()})
    objective = functools.partial(
        clipped_policy,
        surrogate=surrogate,
        log_ratios=loss.log_ratios,
        divergence=Divergence(config.beta, k3) if config.beta else None,
        entropy_coefficient=config.entropy_coefficient,
        temperature=config.rollout.temperature,
    )
    return Recipe(objective, functools.partial(GroupLearner, loss.aggregation, loss.advantages))
