"""The one gradient step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from llama_jax.core import tree
from llama_jax.core.arrays import Array, PRNGKeyArray, PyTree, UInt32
from llama_jax.core.batches import Batch
from llama_jax.objectives.objective import Metrics, Objective
from llama_jax.training.config import TrainingConfig
from llama_jax.training.optimizer import learning_rate_schedule
from llama_jax.training.state import Guard, TrainState, judge, select

Step = Callable[[TrainState, PyTree, Batch], tuple[TrainState, Metrics]]


def init_state(optimizer: optax.GradientTransformation, config: TrainingConfig, trainable: PyTree) -> TrainState:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(trainable, optimizer.init(trainable), zero, zero, Guard.empty(config.spike_window))


def make_step(objective: Objective, optimizer: optax.GradientTransformation, config: TrainingConfig, seed: int) -> Step:
    """The pure function `(state, frozen, batch) -> (state, metrics)`; jit it with the state donated.

    Gradients are those of the whole batch, added over `config.microbatches` parts in float32. When the loss or a
    gradient is not finite, or either spikes, parameters, moments and `updates` stay bit for bit as they were.

    Metrics: those of the objective, `learning_rate`, `grad_norm` (before clipping), `skipped_updates` (so far), and
    `batch_hash`, a number made of the tokens by which two runs can be compared.

    Args:
        optimizer: on the schedule of the configuration.
    """
    schedule = learning_rate_schedule(config)

    def step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.updates)
        gradients, metrics = _gradients(objective, config.microbatches, state.trainable, frozen, batch, key)
        grad_norm = optax.tree.norm(gradients)
        accept, guard = judge(state.guard, metrics["loss"], grad_norm, config.spike_sigma)
        with jax.named_scope("adamw"):
            updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.trainable)
        metrics |= {
            "learning_rate": jnp.asarray(schedule(state.updates), jnp.float32),
            "grad_norm": grad_norm,
            "skipped_updates": guard.skipped_nonfinite + guard.skipped_spikes,
            "batch_hash": _batch_hash(batch),
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
    objective: Objective, count: int, trainable: PyTree, frozen: PyTree, batch: Batch, key: PRNGKeyArray
) -> tuple[PyTree, Metrics]:
    """Gradients and metrics of the whole batch, added over its microbatches."""
    differentiate = jax.grad(objective, has_aux=True)
    if count == 1:
        return differentiate(trainable, frozen, batch, jax.random.fold_in(key, 0))

    parts = (_microbatches(batch, count), jnp.arange(count))
    known: tuple[PyTree, ...] = ()
    if (totals := objective.totals) is not None:
        known = (_summed(lambda part, _: totals(trainable, frozen, part), parts),)
    return _summed(
        lambda part, number: differentiate(trainable, frozen, part, jax.random.fold_in(key, number), *known), parts
    )


def _summed(function: Callable[[Batch, Array], PyTree], parts: tuple[Batch, Array]) -> PyTree:
    """The sum of what a function of a microbatch and its number gives, one after the other."""

    def add(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    shapes = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def _microbatches(batch: Batch, count: int) -> Batch:
    """The batch cut into microbatches along a new leading axis; what has no rows, such as a normaliser, is in each.

    Row r of the batch goes to microbatch r mod count: consecutive rows live on the same device, so a strided cut
    leaves every device with rows of each microbatch and moves no data.
    """

    def cut(leaf: Array, by_row: bool) -> Array:
        if not by_row:
            return jnp.broadcast_to(leaf, (count, *leaf.shape))
        return jnp.moveaxis(leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]), 1, 0)

    fields = batch.arrays().items()
    return batch.replace(**{name: cut(getattr(batch, name), "batch" in field.axes) for name, field in fields})


def _batch_hash(batch: Batch) -> UInt32[Array, ""]:
    hashes = [tree.fingerprints(getattr(batch, name))[0] for name in batch.read_fields()]
    # In order, so that two fields cannot change places.
    return functools.reduce(lambda first, second: first * jnp.uint32(0x01000193) + second, hashes)
