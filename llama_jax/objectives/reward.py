"""Losses of reward models, which give each position a number: what a text is worth when read up to there."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PRNGKeyArray, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.objectives.completions import at_ends, sequence_sums
from llama_jax.objectives.objective import Metrics, Objective, ScoringModel

Losses: TypeAlias = Callable[[Float[Array, "B T"], CompletionBatch], Float[Array, "B K"]]
"""The loss of each example, from the scores of all positions."""


def bradley_terry(centering: float = 0.0) -> Losses:
    """-log sigmoid(chosen - rejected - margin) of the scores at the ends of two answers (arXiv:2009.01325, equation 1;
    margin: arXiv:2307.09288, equation 2), plus `centering` times (chosen + rejected)^2, which keeps the scores around 0
    (arXiv:2312.09244)."""

    def losses(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K"]:
        ends = at_ends(values, batch)
        return bradley_terry_losses(ends[..., 0], ends[..., 1], batch.labels, centering)

    return losses


def bradley_terry_losses(
    chosen: Float[Array, "*B"], rejected: Float[Array, "*B"], margins: Float[Array, "*B"], centering: float = 0.0
) -> Float[Array, "*B"]:
    """Of each pair, in nats; see `bradley_terry`."""
    return -jax.nn.log_sigmoid(chosen - rejected - margins) + centering * jnp.square(chosen + rejected)


def per_token(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K"]:
    """-log sigmoid(chosen - rejected), position by position from the first id in which two answers differ to the end of
    the longer one: the mean over positions, as in DeepSpeed-Chat. That reads on, past the end of the shorter one, what
    the model makes of padding; here a text that has ended keeps its last score."""
    B, K, M = batch.starts.shape
    lengths = batch.ends - batch.starts + 1
    longest = jnp.max(lengths, axis=-1)
    first = jnp.minimum(batch.divergence, longest - 1)  # of two that are the same, their last position
    number = jnp.clip(batch.segment_ids - 1, 0, K * M - 1)  # of the sequence in the row

    def of_sequence(by_sequence: Array) -> Array:
        return jnp.take_along_axis(by_sequence.reshape(B, K * M), number, axis=1)

    def of_example(by_example: Array) -> Array:
        return of_sequence(jnp.repeat(by_example, M, axis=1))

    # Each position looks up what is opposite in the other answer, and those of the longer one stand for the pair.
    there, last_there = (of_sequence(jnp.flip(place, axis=-1)) for place in (batch.starts, batch.ends))
    opposite = jnp.take_along_axis(values, jnp.minimum(there + batch.positions, last_there), axis=1)
    sign = jnp.where(number % M == 0, 1.0, -1.0)
    losses = -jax.nn.log_sigmoid(sign * (values - opposite))
    counts = (number % M == of_example(jnp.argmax(lengths, axis=-1))) & (batch.positions >= of_example(first))
    return sequence_sums(jnp.where(counts, losses, 0.0), batch).sum(axis=-1) / (longest - first)


def regression(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K"]:
    """The square of the difference between the score at the end of an answer and the one in the data, as in
    ChatLLaMA."""
    return jnp.square(at_ends(values, batch)[..., 0] - batch.labels)


def scored(model: ScoringModel, kind: type[CompletionBatch], losses: Losses) -> Objective:
    """The mean of the losses of examples, in batches of that class. Metrics are of the scores at the ends, as they
    are."""

    def loss(
        trainable: PyTree, frozen: PyTree, batch: CompletionBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        params = tree.join(trainable, frozen)
        values = model.scores(params, model.hidden(params, batch.tokens, batch.positions, batch.segment_ids, rng))
        weights = batch.example_weights / batch.normalizer
        by_example = {"loss": losses(values, batch)} | _metrics(at_ends(values, batch), batch.labels)
        metrics = {name: jnp.sum(weights * each) for name, each in by_example.items()}
        return metrics["loss"], metrics

    return Objective(loss, kind)


def _metrics(ends: Float[Array, "B K M"], labels: Float[Array, "B K"]) -> dict[str, Float[Array, "B K"]]:
    first = ends[..., 0]
    if ends.shape[-1] == 1:
        return {"rewards": first, "absolute_error": jnp.abs(first - labels)}
    rejected = ends[..., 1]
    return {
        "accuracy": (first > rejected).astype(jnp.float32),
        "rewards_chosen": first,
        "rewards_rejected": rejected,
        "reward_margin": first - rejected,
    }
