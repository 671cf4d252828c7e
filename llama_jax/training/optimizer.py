"""AdamW with linear warm-up and cosine decay, as LLaMA uses it (arXiv:2302.13971, section 2.3)."""

from collections.abc import Callable, Container
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.training.config import TrainingConfig

RateOf: TypeAlias = Callable[[str], float]
"""Factor on the learning rate of a parameter, by its path."""


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Learning rate of update n (from 0): peak * (n+1)/warmup, then by a cosine or a line from the peak down to
    `final_learning_rate_fraction` of it at `schedule_steps`, and constant after."""
    peak, warmup, end = config.peak_learning_rate, config.warmup_updates, config.final_learning_rate_fraction
    total = config.steps if config.schedule_steps is None else config.schedule_steps
    left = max(total - warmup, 1)
    # The rise starts above 0, so that the first update is one.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    fall = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, left, end),
        "linear": lambda: optax.linear_schedule(peak, end * peak, left),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    return optax.join_schedules([rise, fall], [warmup])


def adamw(
    config: TrainingConfig, decays: Container[str], rate_of: RateOf | None = None
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv:1711.05101) on the schedule of the configuration.

    Args:
        decays: paths of the parameters that weight decay applies to.
        rate_of: factor on the learning rate of a parameter, by its path; None: the same rate for all.
    """

    def mask(params: PyTree) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), [path in decays for path in tree.flatten(params)])

    return optax.chain(
        _clipped(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=mask,
        ),
        *([] if rate_of is None else [_scaled(rate_of)]),
    )


def _clipped(norm: float) -> optax.GradientTransformation:
    """Clip by global norm. optax's own divides each element, and XLA for CPU keeps what is expensive to make, a copy of
    all gradients; here what is divided is one number."""

    def clip(gradients: PyTree, _: PyTree | None) -> PyTree:
        factor = norm / jnp.maximum(norm, optax.tree.norm(gradients))
        return jax.tree.map(lambda gradient: (gradient * factor).astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def _scaled(rate_of: RateOf) -> optax.GradientTransformation:
    """Multiply each update by a factor of its own, which AdamW's decoupled decay shares."""

    def scale(updates: PyTree, _: PyTree | None) -> PyTree:
        rates = jax.tree.unflatten(jax.tree.structure(updates), [rate_of(path) for path in tree.flatten(updates)])
        return jax.tree.map(lambda update, rate: update * rate, updates, rates)

    return optax.stateless(scale)
