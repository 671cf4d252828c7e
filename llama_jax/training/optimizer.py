"""AdamW with linear warm-up and cosine decay, as LLaMA uses it (arXiv:2302.13971, section 2.3)."""

import jax
import optax

from llama_jax.core.arrays import PyTree
from llama_jax.training.config import TrainingConfig


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Learning rate of update n (from 0): peak * (n+1)/warmup, then a cosine from the peak down to
    `final_learning_rate_fraction` of it at `schedule_steps`, and constant after."""
    peak, warmup = config.peak_learning_rate, config.warmup_steps
    total = config.steps if config.schedule_steps is None else config.schedule_steps
    # The rise starts above 0, so that the first update is one.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    fall = optax.cosine_decay_schedule(peak, max(total - warmup, 1), config.final_learning_rate_fraction)
    return optax.join_schedules([rise, fall], [warmup])


def adamw(config: TrainingConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv:1711.05101) with decay on matrices only."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def _is_matrix(params: PyTree) -> PyTree:
    # By name: scanned norm scales are stacked, so the number of axes does not tell them from matrices.
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)
