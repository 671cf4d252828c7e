"""Losses of a policy that learns from what it sampled itself: PPO (arXiv:1707.06347), GRPO (arXiv:2402.03300) and what
came of them. Know advantages, not where they are from."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from llama_jax.core.batches import PolicyBatch, PolicyTextBatch, TokenBatch
from llama_jax.objectives.completion_logprobs import completion_logprobs_and_entropies, entropies
from llama_jax.objectives.divergence import MOST, Estimate
from llama_jax.objectives.next_token import next_token
from llama_jax.objectives.objective import Loss, Metrics, Model, Objective


class Losses(NamedTuple):
    """What a surrogate says of each token."""

    losses: Float[Array, "*B"]
    clipped_low: Bool[Array, "*B"]
    """The ratio is so small, at a negative advantage, that nothing is left of the gradient."""
    clipped_high: Bool[Array, "*B"]
    """So large, at a positive one."""


Surrogate: TypeAlias = Callable[[Float[Array, "*B"], Float[Array, "*B"], Float[Array, "*B"]], Losses]
"""`(log of the ratio of the policies, log p, advantages) -> losses` of each token."""

LogRatios: TypeAlias = Callable[[Float[Array, "B T"], PolicyBatch], Float[Array, "B T"]]
"""From the log-ratio of each token to that of the unit that is clipped, said at each of its tokens."""


class Divergence(NamedTuple):
    """A penalty in the loss on what the policy moves away from the reference."""

    coefficient: float
    estimate: Estimate
    corrected: bool = True
    """Multiply by the ratio of the policies, through which the gradient flows too: then, in the mean, it is the
    gradient of the KL, and off policy as well (DeepSeek-V3.2, arXiv:2512.02556; TRL's `use_bias_correction_kl`)."""


def clipped(low: float = 0.2, high: float | None = None, dual: float | None = None) -> Surrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A) for the ratio r (arXiv:1707.06347, equation 7).

    Args:
        high: None: as `low`; above it, DAPO's clip-higher (arXiv:2503.14476, equation 10).
        dual: At negative advantages the ratio counts no more than this, above 1 + high (dual clip, arXiv:1912.09729,
            equation 5; `delta` of TRL).
    """
    high = low if high is None else high

    def losses(log_ratio: Array, logprobs: Array, advantages: Array) -> Losses:
        del logprobs
        ratio = jnp.exp(log_ratio)
        kept = jnp.clip(ratio, 1 - low, 1 + high)
        free = ratio if dual is None else jnp.minimum(ratio, dual)
        loss = -jnp.minimum(free * advantages, kept * advantages)
        return Losses(loss, (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0))

    return losses


def weighted(high: float = 5.0) -> Surrogate:
    """CISPO (arXiv:2506.13585, equation 4): -min(r, high) A log p, through whose weight no gradient flows, so that no
    token is without one. (`high` is the bound itself, as TRL's `epsilon_high` is for this loss.)"""

    def losses(log_ratio: Array, logprobs: Array, advantages: Array) -> Losses:
        ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
        loss = -jnp.minimum(ratio, high) * advantages * logprobs
        return Losses(loss, jnp.zeros(ratio.shape, jnp.bool_), (ratio > high) & (advantages > 0))

    return losses


def of_tokens(log_ratios: Float[Array, "B T"], batch: PolicyBatch) -> Float[Array, "B T"]:
    """Each token by itself."""
    del batch
    return log_ratios


def of_sequences(log_ratios: Float[Array, "B T"], batch: PolicyBatch) -> Float[Array, "B T"]:
    """The mean over the tokens of a completion: the geometric mean of their ratios (GSPO, arXiv:2507.18071,
    equation 7)."""
    counts = segment_sums(batch.loss_weights, batch.segment_ids)
    return segment_sums(log_ratios, batch.segment_ids) / jnp.maximum(counts, 1.0)


def of_whole_sequences(log_ratios: Float[Array, "B T"], batch: PolicyBatch) -> Float[Array, "B T"]:
    """The sum over the tokens of a completion: the ratio of the probabilities of all of it (RLOO, arXiv:2402.14740)."""
    return segment_sums(log_ratios, batch.segment_ids)


def segment_sums(values: Float[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """At each position, the sum over the positions of its segment."""

    def of_row(values: Array, segment_ids: Array) -> Array:
        sums = jnp.zeros(len(values) + 1, values.dtype).at[segment_ids].add(values)
        return sums[segment_ids]

    return jax.vmap(of_row)(values, segment_ids)


def clipped_policy(
    model: Model,
    surrogate: Surrogate,
    *,
    log_ratios: LogRatios = of_tokens,
    divergence: Divergence | None = None,
    entropy_coefficient: float = 0.0,
    temperature: float = 1.0,
) -> Objective:
    """The surrogate by the shares of the tokens, plus the divergence by the same, minus `entropy_coefficient` times the
    mean entropy over all tokens.

    Metrics, means over all sampled tokens: `policy_loss` (of the surrogate, by the shares), `ratio`, `approximate_kl`
    (half the squared log-ratio), `clip_fraction`, `clip_fraction_low`, `clip_fraction_high`, `entropy` and, with a
    divergence, `kl`.

    Args:
        log_ratios: What is clipped: tokens, or completions.
        entropy_coefficient: Above 0, the logits are made once more.
        temperature: With which the completions were sampled; all log-probabilities are of the distribution it makes.
    """

    def loss(
        trainable: PyTree, frozen: PyTree, batch: PolicyBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        params = tree.join(trainable, frozen)
        head, unembed = model.head(params), tempered(model, temperature)
        hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids, rng)
        wanted = batch.loss_weights > 0
        logprobs, entropy = completion_logprobs_and_entropies(unembed, head, hidden, batch.targets, wanted)
        if entropy_coefficient:
            entropy = jnp.where(wanted, entropies(unembed, head, hidden), 0.0)
        terms = policy_terms(surrogate, logprobs, batch, log_ratios=log_ratios, divergence=divergence)
        metrics = _metrics(terms, batch) | {"entropy": jnp.sum(batch.loss_weights * entropy) / batch.normalizer}
        metrics["loss"] = jnp.sum(batch.shares * terms.losses) / batch.share_normalizer
        if entropy_coefficient:
            metrics["loss"] -= entropy_coefficient * metrics["entropy"]
        return metrics["loss"], metrics

    return Objective(loss, PolicyBatch)


def tempered(model: Model, temperature: float) -> Callable[[Array, Array], Array]:
    """The model's logits divided by a temperature."""
    return model.unembed if temperature == 1 else lambda head, hidden: model.unembed(head, hidden) / temperature


class Terms(NamedTuple):
    """Of each token, 0 where none was sampled."""

    losses: Float[Array, "B T"]
    """All that the shares apply to."""
    of_surrogate: Losses
    log_ratio: Float[Array, "B T"]
    """Of the token itself."""
    kl: Float[Array, "B T"] | None


def policy_terms(
    surrogate: Surrogate,
    logprobs: Float[Array, "B T"],
    batch: PolicyBatch,
    *,
    log_ratios: LogRatios = of_tokens,
    divergence: Divergence | None = None,
) -> Terms:
    """What the loss is summed from, given log p of the targets."""

    def of_sampled(values: Array) -> Array:
        # Chosen, not multiplied: what stands elsewhere may be anything.
        return jnp.where(batch.loss_weights > 0, values, 0.0)

    logprobs = of_sampled(logprobs)
    log_ratio = logprobs - of_sampled(batch.old_logprobs)
    unit = of_sampled(jnp.clip(log_ratios(log_ratio, batch), -MOST, MOST))
    of_surrogate = surrogate(unit, logprobs, of_sampled(batch.advantages))
    losses = of_sampled(batch.importance_weights) * of_surrogate.losses
    kl = None
    if divergence is not None:
        kl = divergence.estimate(logprobs, of_sampled(batch.reference_logprobs))
        kl = kl * jnp.exp(unit) if divergence.corrected else kl
        losses += divergence.coefficient * kl
    return Terms(losses, of_surrogate, log_ratio, kl)


def _metrics(terms: Terms, batch: PolicyBatch) -> Metrics:
    def mean(values: Array) -> Float[Array, ""]:
        return jnp.sum(batch.loss_weights * values) / batch.normalizer

    low, high = (mean(each.astype(jnp.float32)) for each in terms.of_surrogate[1:])
    weights = jnp.where(batch.loss_weights > 0, batch.importance_weights, 0.0)
    found = {
        "policy_loss": jnp.sum(batch.shares * weights * terms.of_surrogate.losses) / batch.share_normalizer,
        "ratio": mean(jnp.exp(jnp.minimum(terms.log_ratio, MOST))),
        "approximate_kl": mean(jnp.square(terms.log_ratio) / 2),
        "clip_fraction": low + high,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
    }
    return found if terms.kl is None else found | {"kl": mean(terms.kl)}


def with_text(policy: Objective, model: Model, coefficient: float) -> Objective:
    """A policy loss plus `coefficient` times the next-token loss on rows of text, so that what was learned before is
    not forgotten (PPO-ptx of InstructGPT, arXiv:2203.02155, equation 2, with 27.8 there)."""
    text_loss: Loss = next_token(model).loss

    def loss(
        trainable: PyTree, frozen: PyTree, batch: PolicyTextBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        policy_rng, text_rng = (None, None) if rng is None else jax.random.split(rng)
        total, metrics = policy(trainable, frozen, batch, policy_rng)
        text = TokenBatch(**{name: getattr(batch, f"text_{name}") for name in TokenBatch.arrays()})
        of_text, _ = text_loss(trainable, frozen, text, text_rng)
        total += coefficient * of_text
        return total, metrics | {"loss": total, "text_loss": of_text}

    return Objective(loss, PolicyTextBatch)
