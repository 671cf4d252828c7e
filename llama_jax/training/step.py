"""The one gradient step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from llama_jax.core import tree
from llama_jax.core.arrays import PRNGKeyArray, PyTree
from llama_jax.core.batches import TokenBatch, microbatches
from llama_jax.objectives.objective import Metrics, Objective
from llama_jax.training.config import TrainingConfig
from llama_jax.training.optimizer import RateOf, adamw, learning_rate_schedule
from llama_jax.training.state import Guard, TrainState, judge, select

Step = Callable[[TrainState, PyTree, TokenBatch], tuple[TrainState, Metrics]]


def init_state(config: TrainingConfig, trainable: PyTree, rate_of: RateOf | None = None) -> TrainState:
    """The state before the first step; `rate_of` as in `make_step`."""
    zero = jnp.zeros((), jnp.int32)
    optimizer_state = adamw(config, learning_rate_schedule(config), rate_of).init(trainable)
    return TrainState(trainable, optimizer_state, zero, zero, Guard.empty(config.spike_window))


def make_step(objective: Objective, config: TrainingConfig, seed: int, rate_of: RateOf | None = None) -> Step:
    """The pure function `(state, frozen, batch) -> (state, metrics)`; jit it with the state donated.

    Gradients are those of the whole batch, added over `config.microbatches` parts in float32. When the loss or a
    gradient is not finite, or either spikes, parameters, moments and `updates` stay bit for bit as they were.

    Metrics: those of the objective, `learning_rate`, `grad_norm` (before clipping), `skipped_updates` (so far), and
    `batch_hash`, a number made of the tokens by which two runs can be compared.

    Args:
        rate_of: factor on the learning rate of a parameter, by its path; None: the same rate for all.
    """
    schedule = learning_rate_schedule(config)
    optimizer = adamw(config, schedule, rate_of)

    def step(state: TrainState, frozen: PyTree, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.updates)
        gradients, metrics = _gradients(objective, config.microbatches, state.trainable, frozen, batch, key)
        grad_norm = optax.global_norm(gradients)
        finite, accept, guard = judge(state.guard, metrics["loss"], grad_norm, config.spike_sigma)
        # The optimizer never sees a non-finite number, so nothing it computes on the side can be poisoned.
        gradients = select(finite, gradients, jax.tree.map(jnp.zeros_like, gradients))
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.trainable)
        metrics |= {
            "learning_rate": jnp.asarray(schedule(state.updates), jnp.float32),
            "grad_norm": grad_norm,
            "skipped_updates": guard.skipped_nonfinite + guard.skipped_spikes,
            "batch_hash": tree.fingerprints(batch.tokens)[0],
        }
        after = TrainState(
            trainable=select(accept, optax.apply_updates(state.trainable, updates), state.trainable),
            optimizer_state=select(accept, optimizer_state, state.optimizer_state),
            batches=state.batches + 1,
            updates=state.updates + accept,
            guard=guard,
        )
        return after, metrics

    return step


def _gradients(
    objective: Objective, count: int, trainable: PyTree, frozen: PyTree, batch: TokenBatch, key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Gradients and metrics of the whole batch, added over its microbatches."""
    differentiate = jax.grad(objective, has_aux=True)
    if count == 1:
        return differentiate(trainable, frozen, batch, jax.random.fold_in(key, 0))

    def add(total: tuple[PyTree, Metrics], part: tuple[TokenBatch, jax.Array]) -> tuple[tuple[PyTree, Metrics], None]:
        microbatch, number = part
        result = differentiate(trainable, frozen, microbatch, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, result), None

    parts = (microbatches(batch, count), jnp.arange(count))
    shapes = jax.eval_shape(differentiate, trainable, frozen, jax.tree.map(lambda leaf: leaf[0], parts[0]), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]
