"""The critic of a run: where its parameters are from, and which of them are its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.model.config import AdapterConfig, LlamaConfig
from llama_jax.model.lora import merge
from llama_jax.objectives.value import clipped_value
from llama_jax.rl.learners.opened import Opened
from llama_jax.rl.learners.reward_model import OpenRewardModel
from llama_jax.rl.learners.trained import Role, Trained
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.runs.methods import Method, all_parameters, build_program, low_rank_adapter, with_scalar_head
from llama_jax.training.program import Program

PREFIX = "critic_"
"""Of its items in checkpoints."""
_KEY = 1
"""What the seed is folded with to draw its adapter, which is not to be the policy's."""


class Critic(NamedTuple):
    """A critic that has not begun."""

    role: Role
    begin: Callable[[], Trained]
    """The critic of a run that begins."""


def critic_method(config: PpoConfig, adapter: AdapterConfig | None = None) -> Method:
    """Which of its parameters train.

    Args:
        adapter: That of the reward model, with which it goes on; None: it has one like the policy's.
    """
    if config.method == "full":
        return with_scalar_head(all_parameters(config.training.trainable))
    rate = config.critic.peak_learning_rate
    made = replace(adapter or config.lora, learning_rate=None, dropout=0.0)
    return with_scalar_head(low_rank_adapter(made, config.model_dtype, rate))


def critic_program(
    config: PpoConfig, method: Method, architecture: LlamaConfig, devices: Sequence[Any] | None = None
) -> Program:
    """Its updates as compiled functions, which are counted; allocates nothing."""
    training = replace(
        config.training,
        steps=config.training.steps * config.updates,
        peak_learning_rate=config.critic.peak_learning_rate,
    )
    counted = replace(config, training=training)

    def objective(model: Any) -> Any:
        return clipped_value(model, config.critic.clip)

    return build_program(counted, method, objective, architecture, config.row_length, devices)


def open_critic(opened: Opened[PpoConfig], reward: OpenRewardModel | None) -> Critic:
    """A critic that begins as the reward model, or as the model of the run with a head of zeros; on the mesh in use.

    With adapters it is one over the base that it is opened with, and shares the arrays of that: those of the policy's
    base, or of a reward model that is one of its own.
    """
    config, start = opened.config, opened.start
    reward = None if config.critic.begins == "model" else reward
    goes_on = None if reward is None else reward.adapter
    method = critic_method(config, goes_on)
    of_model = None if start.base is None else _with_head(start.base.params)
    shared = of_model if reward is None else reward.params
    architecture = opened.policy.program.model.config if reward is None else reward.model.config
    program = critic_program(config, method, architecture)
    unsaved = {path for path in tree.flatten(program.frozen_shapes) if not method.is_saved(path)}
    role = Role(program, method, tree.split(shared or {}, unsaved.__contains__)[0], PREFIX)
    if goes_on is not None:
        _check_same_shapes(program, shared, config)

    def begin() -> Trained:
        params = _with_head(start.open_model().params) if shared is None else shared
        if goes_on is None:
            params = method.begin(params, jax.random.fold_in(jax.random.key(config.seed), _KEY))
        if shared is not None:  # of which the updates must not take the memory
            own = set(tree.flatten(program.state_shapes.trainable))
            leaves = tree.flatten(params).items()
            params = tree.unflatten({path: jnp.copy(leaf) if path in own else leaf for path, leaf in leaves})
        return role.begun(*program.begin(params))

    return Critic(role, begin)


def _with_head(params: PyTree) -> PyTree:
    """A language model with a scalar head of zeros: it expects nothing yet."""
    params = merge(params)
    (width,) = params["final_norm"]["scale"].shape
    return params | {"score": {"kernel": jnp.zeros((width, 1), jnp.float32)}}


def _check_same_shapes(program: Program, params: PyTree, config: PpoConfig) -> None:
    wanted = tree.flatten(tree.join(program.state_shapes.trainable, program.frozen_shapes))
    there = tree.flatten(params)
    if {path: leaf.shape for path, leaf in wanted.items()} != {path: leaf.shape for path, leaf in there.items()}:
        raise UserError(
            f"--reward_model {config.reward_model}: has an adapter whose layers differ, with which no critic goes on; "
            "give --critic.begins model"
        )
