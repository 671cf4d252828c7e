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


def bradley_terry(model: ScoringModel, batch: type[CompletionBatch], centering: float = 0.0) -> Objective:
    """-log sigmoid(chosen - rejected - margin) of the scores at the ends of two answers (arXiv:2009.01325, equation 1;
    margin: arXiv:2307.09288, equation 2), plus `centering` times (chosen + rejected)^2, which keeps the scores around 0
    (arXiv:2312.09244); the mean over pairs."""

    def losses(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K"]:
        ends = at_ends(values, batch)
        return bradley_terry_losses(ends[..., 0], ends[..., 1], batch.labels, centering)

    return _of_examples(model, batch, losses, _pair_metrics)


def per_token(model: ScoringModel, batch: type[CompletionBatch]) -> Objective:
    """-log sigmoid(chosen - rejected), position by position from the first id in which two answers differ to the end of
    the longer one: the mean over positions, then over pairs, as in DeepSpeed-Chat. That reads on, past the end of the
    shorter one, what the model makes of padding; here a text that has ended keeps its last score."""
    return _of_examples(model, batch, per_token_losses, _pair_metrics)


def regression(model: ScoringModel, batch: type[CompletionBatch]) -> Objective:
    """The square of the difference between the score at the end of an answer and the one in the data; the mean over
    answers, as in ChatLLaMA."""

    def losses(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K"]:
        return jnp.square(at_ends(values, batch)[..., 0] - batch.labels)

    def metrics(ends: Float[Array, "B K M"], batch: CompletionBatch) -> dict[str, Float[Array, "B K"]]:
        return {"rewards": ends[..., 0], "absolute_error": jnp.abs(ends[..., 0] - batch.labels)}

    return _of_examples(model, batch, losses, metrics)


def bradley_terry_losses(
    chosen: Float[Array, "*B"], rejected: Float[Array, "*B"], margins: Float[Array, "*B"], centering: float = 0.0
) -> Float[Array, "*B"]:
    """See `bradley_terry`; of each pair, in nats."""
    return -jax.nn.log_sigmoid(chosen - rejected - margins) + centering * jnp.square(chosen + rejected)


def per_token_losses(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K"]:
    """See `per_token`; of each pair, in nats."""
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


def _of_examples(
    model: ScoringModel,
    kind: type[CompletionBatch],
    losses: Losses,
    metrics_of: Callable[[Float[Array, "B K M"], CompletionBatch], dict[str, Float[Array, "B K"]]],
) -> Objective:
    """The mean of losses over examples, and of numbers that tell of their end scores."""

    def loss(
        trainable: PyTree, frozen: PyTree, batch: CompletionBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        params = tree.join(trainable, frozen)
        hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids, rng)
        values = model.scores(params, hidden)
        weights = batch.example_weights / batch.normalizer

        def mean(by_example: Float[Array, "B K"]) -> Float[Array, ""]:
            return jnp.sum(weights * by_example)

        found = mean(losses(values, batch))
        metrics = {name: mean(each) for name, each in metrics_of(at_ends(values, batch), batch).items()}
        return found, {"loss": found} | metrics

    return Objective(loss, kind)


def _pair_metrics(ends: Float[Array, "B K M"], batch: CompletionBatch) -> dict[str, Float[Array, "B K"]]:
    del batch
    chosen, rejected = ends[..., 0], ends[..., 1]
    return {
        "accuracy": (chosen > rejected).astype(jnp.float32),
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "reward_margin": chosen - rejected,
    }
