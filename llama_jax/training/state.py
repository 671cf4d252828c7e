"""What training carries from one step to the next, and the record of recent updates that the guard looks at."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from llama_jax.core.arrays import Array, Bool, Float, Int, PyTree


class Guard(struct.PyTreeNode):
    """Losses and gradient norms of recent updates, to tell a spike from noise.

    A ring buffer: `seen` counts what was written, so `seen % window` is the next slot.
    """

    losses: Annotated[Any, Float[Array, "W"]]
    grad_norms: Annotated[Any, Float[Array, "W"]]
    seen: Annotated[Any, Int[Array, ""]]
    skipped_nonfinite: Annotated[Any, Int[Array, ""]]
    skipped_spikes: Annotated[Any, Int[Array, ""]]

    @staticmethod
    def empty(window: int) -> "Guard":
        """A guard that has seen nothing."""
        zero = jnp.zeros((), jnp.int32)
        return Guard(jnp.zeros(window), jnp.zeros(window), zero, zero, zero)


class TrainState(struct.PyTreeNode):
    """The parameters being trained and all that decides the next update."""

    trainable: PyTree
    optimizer_state: PyTree
    batches: Annotated[Any, Int[Array, ""]]
    """Batches read, skipped updates included; names checkpoints and ends the run."""
    updates: Annotated[Any, Int[Array, ""]]
    """Updates made; drives the schedule and the random keys."""
    guard: Guard


# A standard deviation is not known from fewer values than this.
_MIN_HISTORY = 8
# Early losses fall fast and gradient norms are skewed: below these fractions of the mean a rise is not a spike,
# however small the recent deviation.
_LOSS_MARGIN, _GRAD_NORM_MARGIN = 0.25, 1.0


def judge(
    guard: Guard, loss: Float[Array, ""], grad_norm: Float[Array, ""], sigma: float
) -> tuple[Bool[Array, ""], Guard]:
    """Whether the update is to be made, and the guard after seeing the numbers.

    A spike is a loss or gradient norm more than `sigma` standard deviations above the mean of the window. It enters
    the window as the largest value that would have passed, so one spike does not hide the next, while a lasting change
    of level is accepted after a while. Non-finite values never enter.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    loss_limit = _limit(guard.losses, guard.seen, sigma, _LOSS_MARGIN)
    norm_limit = _limit(guard.grad_norms, guard.seen, sigma, _GRAD_NORM_MARGIN)
    spike = finite & ((loss > loss_limit) | (grad_norm > norm_limit))
    slot = guard.seen % guard.losses.shape[0]

    def enter(window: Array, value: Array, limit: Array) -> Array:
        return jnp.where(finite, window.at[slot].set(jnp.minimum(value, limit)), window)

    after = Guard(
        losses=enter(guard.losses, loss, loss_limit),
        grad_norms=enter(guard.grad_norms, grad_norm, norm_limit),
        seen=guard.seen + finite,
        skipped_nonfinite=guard.skipped_nonfinite + ~finite,
        skipped_spikes=guard.skipped_spikes + spike,
    )
    return finite & ~spike, after


def _limit(window: Float[Array, "W"], seen: Int[Array, ""], sigma: float, margin: float) -> Float[Array, ""]:
    """The largest value that is not a spike; infinite while too little was seen, or when `sigma` is 0."""
    if not sigma:
        return jnp.full((), jnp.inf)
    valid = jnp.arange(window.shape[0]) < seen
    count = jnp.maximum(valid.sum(), 1)
    mean = jnp.sum(jnp.where(valid, window, 0)) / count
    variance = jnp.sum(jnp.where(valid, jnp.square(window - mean), 0)) / jnp.maximum(count - 1, 1)
    limit = mean + jnp.maximum(sigma * jnp.sqrt(variance), margin * jnp.abs(mean))
    return jnp.where(seen >= _MIN_HISTORY, limit, jnp.inf)


def select(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where the condition holds, else `old`, leaf by leaf. Never by multiplying: 0 * NaN is NaN."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
