"""The loss on single completions that are good or bad: KTO (arXiv:2402.01306)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PRNGKeyArray, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.objectives.completion_logprobs import sequence_logprobs
from llama_jax.objectives.objective import Metrics, Model, Objective


class Totals(NamedTuple):
    """What must be known of all examples of an update."""

    divergence: Float[Array, ""]
    """Sum of the ratios of the completions after prompts that are not theirs."""
    examples: Float[Array, ""]
    """Number of examples."""
    good: Float[Array, ""]
    """Number of those whose label is 1."""


def kto(
    model: Model,
    kind: type[CompletionBatch],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Objective:
    """The mean of `kto_losses` over the completions of a batch.

    Args:
        kind: class of the batches. The first of the two sequences of an example is the completion; the second, one of
            another example after the same prompt, tells the divergence.
    """

    def totals(trainable: PyTree, frozen: PyTree, batch: CompletionBatch) -> Totals:
        return _totals(sequence_logprobs(model, tree.join(trainable, frozen), batch) - batch.reference, batch)

    def of_batch(
        trainable: PyTree, frozen: PyTree, batch: CompletionBatch, rng: PRNGKeyArray | None, total: Totals | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        logprobs = sequence_logprobs(model, tree.join(trainable, frozen), batch, rng)
        ratios, labels = logprobs - batch.reference, batch.labels
        total = _totals(ratios, batch) if total is None else total
        divergence = kl_estimate(total.divergence, total.examples)
        losses = kto_losses(
            ratios[..., 0],
            labels,
            divergence,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        share = batch.example_weights / batch.normalizer
        right = (1 + jnp.sign((2 * labels - 1) * (ratios[..., 0] - divergence))) / 2
        loss = jnp.sum(share * losses)
        metrics = {"loss": loss, "kl": divergence * share.sum(), "accuracy": jnp.sum(share * right)}
        return loss, metrics | _means_by_label(beta * ratios[..., 0], logprobs[..., 0], batch, total)

    return Objective(of_batch, kind, totals)


def _totals(ratios: Float[Array, "B K 2"], batch: CompletionBatch) -> Totals:
    weights = batch.example_weights
    sums = (jnp.sum(weights * ratios[..., 1]), weights.sum(), jnp.sum(weights * batch.labels))
    return jax.lax.stop_gradient(Totals(*sums))


def _means_by_label(
    rewards: Float[Array, "B K"], logprobs: Float[Array, "B K"], batch: CompletionBatch, total: Totals
) -> Metrics:
    """TRL's, in our spelling; 0 for a label that no example has."""
    good = batch.example_weights * batch.labels / jnp.maximum(total.good, 1)
    bad = batch.example_weights * (1 - batch.labels) / jnp.maximum(total.examples - total.good, 1)
    chosen, rejected = jnp.sum(good * rewards), jnp.sum(bad * rewards)
    return {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "reward_margin": chosen - rejected,
        "logprobs_chosen": jnp.sum(good * logprobs),
        "logprobs_rejected": jnp.sum(bad * logprobs),
    }


def kto_losses(
    ratios: Float[Array, "*B"],
    labels: Float[Array, "*B"],
    divergence: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*B"]:
    """How far each completion falls short of what its label wants (equation 7; `kto` of TRL).

    Args:
        ratios: log p(completion) - log p_reference(completion), in nats.
        labels: 1 for a good completion, 0 for a bad one.
        divergence: from the reference model, see `kl_estimate`.
    """
    value = beta * (ratios - divergence)
    good, bad = 1 - jax.nn.sigmoid(value), 1 - jax.nn.sigmoid(-value)
    return jnp.where(labels > 0.5, desirable_weight * good, undesirable_weight * bad)


def kl_estimate(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """The divergence of policy and reference model, from the sum of the ratios of completions after prompts that are
    not theirs and their number: the mean, at least 0 as a divergence is (section 4.1). Has no gradient."""
    return jax.lax.stop_gradient(jnp.maximum(total / jnp.maximum(count, 1.0), 0.0))
