"""Losses on pairs of completions of the same prompt, of which one is preferred: DPO and its kin.

Each loss is a pure function of two arrays `[..., 2]`, of the chosen completion and the rejected one: `ratios`,
log p(completion) - log p_reference(completion) in nats, and `lengths`, the tokens of the completions. It gives one
number a pair. The losses that have no reference model (`simpo`, `orpo`) take log p(completion) as ratios."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PRNGKeyArray, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.objectives.completion_logprobs import sequence_logprobs
from llama_jax.objectives.completions import sequence_sums
from llama_jax.objectives.objective import Metrics, Model, Objective

PairLoss: TypeAlias = Callable[[Float[Array, "*B 2"], Float[Array, "*B 2"]], Float[Array, "*B"]]
"""`(ratios, lengths) -> loss of each pair`: one of the functions below, with its settings bound."""


def preference(
    model: Model,
    loss: PairLoss,
    kind: type[CompletionBatch],
    *,
    beta: float,
    per_token: bool = False,
    sft_weight: float = 0.0,
) -> Objective:
    """The mean of a loss over the pairs of a batch, plus `sft_weight` times the next-token loss of the chosen
    completions, the mean over their tokens (DPO with NLL, arXiv:2404.19733; `sft` among TRL's losses).

    Args:
        kind: class of the batches, of two completions an example, the chosen one first.
        beta: of the rewards in the metrics, beta times the ratios that the batch's reference log-probs give.
        per_token: the rewards are per token, as the loss takes them.
    """

    def totals(trainable: PyTree, frozen: PyTree, batch: CompletionBatch) -> Float[Array, ""]:
        del trainable, frozen
        return jnp.maximum(sequence_sums(batch.loss_weights, batch)[..., 0].sum(), 1.0)

    def of_batch(
        trainable: PyTree,
        frozen: PyTree,
        batch: CompletionBatch,
        rng: PRNGKeyArray | None,
        chosen_tokens: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        logprobs = sequence_logprobs(model, tree.join(trainable, frozen), batch, rng)
        metrics = pair_metrics(loss, logprobs, batch, beta=beta, per_token=per_token)
        if not sft_weight:
            return metrics["loss"], metrics
        tokens = totals(trainable, frozen, batch) if chosen_tokens is None else chosen_tokens
        metrics["sft_loss"] = -jnp.sum(batch.example_weights * logprobs[..., 0]) / tokens
        metrics["loss"] += sft_weight * metrics["sft_loss"]
        return metrics["loss"], metrics

    return Objective(of_batch, kind, totals if sft_weight else None)


def pair_metrics(
    loss: PairLoss, logprobs: Float[Array, "B K 2"], batch: CompletionBatch, *, beta: float, per_token: bool
) -> Metrics:
    """Means over the pairs of a batch, `loss` among them: TRL's, in our spelling.

    The rewards are those that the model implies, beta times the ratios; a pair of equal rewards is half right, so that
    a model that is its own reference has an accuracy of 1/2."""
    there = (batch.example_weights > 0)[..., None]
    # Of a place without a pair the numbers are such that no loss, nor its gradient, is infinite.
    ratios = jnp.where(there, logprobs - batch.reference, -1.0)
    lengths = jnp.where(there, sequence_sums(batch.loss_weights, batch), 1.0)
    rewards = beta * (ratios / lengths if per_token else ratios)
    margin = _margin(rewards)

    def mean(values: Float[Array, "B K"]) -> Float[Array, ""]:
        return jnp.sum(batch.example_weights * values) / batch.normalizer

    return {
        "loss": mean(loss(ratios, lengths)),
        "rewards_chosen": mean(rewards[..., 0]),
        "rewards_rejected": mean(rewards[..., 1]),
        "reward_margin": mean(margin),
        "accuracy": mean((1 + jnp.sign(margin)) / 2),
        "logprobs_chosen": mean(logprobs[..., 0]),
        "logprobs_rejected": mean(logprobs[..., 1]),
    }


def sigmoid(ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """DPO (arXiv:2305.18290, equation 7): -log sigmoid(beta (chosen - rejected))."""
    del lengths
    return _cost_of(beta * _margin(ratios))


def length_normalized(
    ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float
) -> Float[Array, "*B"]:
    """DPO on ratios per token (Tulu 3, arXiv:2411.15124; `sigmoid_norm` of TRL). Its beta is larger by
    the length of an answer: Tulu 3 takes 5."""
    return _cost_of(beta * _margin(ratios / lengths))


def hinge(ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """max(0, 1 - beta (chosen - rejected)): SLiC-HF's loss on ratios (arXiv:2305.10425; arXiv:2309.06657)."""
    del lengths
    return jax.nn.relu(1 - beta * _margin(ratios))


def ipo_sequence(ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """IPO as the paper writes it (arXiv:2310.12036, equation 17, where beta is tau): the difference of the ratios of
    whole completions is to be 1 / (2 beta)."""
    del lengths
    return jnp.square(_margin(ratios) - 1 / (2 * beta))


def ipo_tokens(ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """IPO on ratios per token, as its authors computed it by their word to TRL, whose `ipo` this is."""
    return ipo_sequence(ratios / lengths, lengths, beta=beta)


def conservative(
    ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float, label_smoothing: float
) -> Float[Array, "*B"]:
    """DPO where a share of the labels is taken to be flipped (Mitchell, "A note on DPO with noisy preferences"): the
    mean of the losses of both labels. A margin that is too large costs again."""
    del lengths
    margin = beta * _margin(ratios)
    return (1 - label_smoothing) * _cost_of(margin) + label_smoothing * _cost_of(-margin)


def robust(
    ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float, label_smoothing: float
) -> Float[Array, "*B"]:
    """DPO whose mean over labels, a share of which is flipped, is that of the loss on true ones
    (arXiv:2403.00409). The share must be below 1/2."""
    del lengths
    margin = beta * _margin(ratios)
    kept, flipped = (1 - label_smoothing) * _cost_of(margin), label_smoothing * _cost_of(-margin)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def apo_zero(ratios: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """APO-zero (arXiv:2408.06266, equation 7): the chosen completion becomes likelier and the rejected one less likely,
    each by itself; for chosen completions that are better than the model's own."""
    del lengths
    return 1 - jax.nn.sigmoid(beta * ratios[..., 0]) + jax.nn.sigmoid(beta * ratios[..., 1])


def simpo(
    logprobs: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float, target_margin: float
) -> Float[Array, "*B"]:
    """SimPO (arXiv:2405.14734, equation 6): log p per token, without a reference, ahead by `target_margin` (gamma)."""
    return _cost_of(beta * _margin(logprobs / lengths) - target_margin)


def odds_ratio(logprobs: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """beta times ORPO's second term (arXiv:2403.07691, equations 4, 5 and 7; beta is lambda): -log sigmoid of the log
    of the ratio of odds, p / (1 - p), where p is the geometric mean of the probabilities of a completion's tokens."""
    # A completion that is certain has infinite odds, and no gradient: at 1 - 1e-6 both are still large.
    per_token = jnp.minimum(logprobs / lengths, -1e-6)
    return beta * _cost_of(_margin(per_token - jnp.log(-jnp.expm1(per_token))))


def orpo(logprobs: Float[Array, "*B 2"], lengths: Float[Array, "*B 2"], *, beta: float) -> Float[Array, "*B"]:
    """ORPO (arXiv:2403.07691, equation 6): the loss per token of the chosen completion, and `odds_ratio`.

    TRL takes the first over the prompt too, and its mean over the tokens of a batch."""
    return odds_ratio(logprobs, lengths, beta=beta) - logprobs[..., 0] / lengths[..., 0]


def _margin(values: Float[Array, "*B 2"]) -> Float[Array, "*B"]:
    return values[..., 0] - values[..., 1]


def _cost_of(margin: Float[Array, "*B"]) -> Float[Array, "*B"]:
    return -jax.nn.log_sigmoid(margin)
