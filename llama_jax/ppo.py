"""Train a model on rewards of what it samples, with a critic: `python -m llama_jax.ppo`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("ppo")

from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.model.config import LlamaConfig
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.objective import Objective
from llama_jax.objectives.policy import clipped, clipped_policy, with_text
from llama_jax.rl import running
from llama_jax.rl.learners.actor_critic import ActorCriticLearner
from llama_jax.rl.learners.critic import critic_method, critic_program
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.running import Recipe
from llama_jax.training.program import Program

_CHANGING = ("model", "step", "reward_model", "reward_step", "text.source")
"""Settings that may differ when a run is resumed: what they name is known again by its values."""


def build(config: PpoConfig, devices: Sequence[Any] | None = None) -> Program:
    """The updates of the policy as compiled functions over the mesh of its config, on the given devices or on all;
    allocates nothing."""
    return running.build(config, recipe(config), devices)


def ppo(config: PpoConfig) -> None:
    """Write a run directory: checkpoints of the tuned model or of its adapter, with the critic beside it, metrics and
    their curves, and a verdict on held-out prompts."""
    running.learn_from_rewards(config, recipe(config), command="ppo")


def recipe(config: PpoConfig) -> Recipe:
    """The losses and the roles that the config describes."""

    def objective(model: LanguageModel) -> Objective:
        policy = clipped_policy(
            model,
            clipped(config.clip, dual=config.dual_clip),
            entropy_coefficient=config.entropy_coefficient,
            temperature=config.rollout.temperature,
        )
        return policy if config.text.source is None else with_text(policy, model, config.text.coefficient)

    def critic(architecture: LlamaConfig, devices: Sequence[Any] | None) -> Mapping[str, Program]:
        return {"critic": critic_program(config, critic_method(config), architecture, devices)}

    return Recipe(objective, ActorCriticLearner, critic, _CHANGING)
