"""The loss of a critic, which says at each position what a policy will still be given from there on."""

import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Bool, Float, PRNGKeyArray, PyTree
from llama_jax.core.batches import ValueBatch
from llama_jax.objectives.objective import Metrics, Objective, ScoringModel


def clipped_value(model: ScoringModel, clip: float | None = 0.2) -> Objective:
    """The mean of `value_losses` over the positions that count.

    Metrics, means over these: `loss`, `clip_fraction` (where the clipped value is the worse one), `value`, `return`,
    and `squared_error` of the values as they are.

    Args:
        clip: How far a value may move from the old one; None: as far as it likes.
    """

    def loss(
        trainable: PyTree, frozen: PyTree, batch: ValueBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        params = tree.join(trainable, frozen)
        values = model.scores(params, model.hidden(params, batch.tokens, batch.positions, batch.segment_ids, rng))
        losses, is_clipped = value_losses(values, batch.old_values, batch.returns, clip)
        by_position = {
            "loss": losses,
            "clip_fraction": is_clipped.astype(jnp.float32),
            "value": values,
            "return": batch.returns,
            "squared_error": jnp.square(values - batch.returns),
        }
        counts = batch.loss_weights > 0
        metrics = {
            name: jnp.sum(jnp.where(counts, batch.loss_weights * each, 0.0)) / batch.normalizer
            for name, each in by_position.items()
        }
        return metrics["loss"], metrics

    return Objective(loss, ValueBatch)


def value_losses(
    values: Float[Array, "*B"], old_values: Float[Array, "*B"], returns: Float[Array, "*B"], clip: float | None
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
    """Half the squared error, of the value or of the value clipped around the old one, whichever is worse, and where
    that is the clipped one (PPO's code, arXiv:2005.12729, section 3)."""
    squares = jnp.square(values - returns)
    if clip is None:
        return squares / 2, jnp.zeros(squares.shape, jnp.bool_)
    of_clipped = jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns)
    return jnp.maximum(squares, of_clipped) / 2, of_clipped > squares
