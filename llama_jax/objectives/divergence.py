"""Estimates of KL(policy || reference) from the log-probabilities of tokens that the policy sampled (Schulman 2020,
http://joschu.net/blog/kl-approx.html): in nats per token, the mean of which over samples is what is estimated."""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from llama_jax.core.arrays import Array, Float

Estimate: TypeAlias = Callable[[Float[Array, "*B"], Float[Array, "*B"]], Float[Array, "*B"]]
"""`(log p under the policy, log p under the reference) -> estimate`, of each token."""

MOST = 20.0
"""Nats: log-ratios are taken to be no larger, so that their exponential is a number with which one can go on."""


def k1(logprobs: Float[Array, "*B"], reference: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The log-ratio: right in the mean, of either sign. Its gradient, in the mean, is nothing: a penalty on rewards,
    not a loss."""
    return logprobs - reference


def k2(logprobs: Float[Array, "*B"], reference: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Half the square of the log-ratio: a little off in the mean, but on policy its gradient is that of the KL."""
    return jnp.square(logprobs - reference) / 2


def k3(logprobs: Float[Array, "*B"], reference: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """exp(-r) - 1 + r for the log-ratio r: right in the mean, and never negative. On policy its gradient is, in the
    mean, that of KL(reference || policy), unless it is multiplied by the ratio of policies (`clipped_policy`)."""
    ratio = jnp.minimum(reference - logprobs, MOST)
    return jnp.exp(ratio) - 1 - ratio


ESTIMATES: dict[str, Estimate] = {"k1": k1, "k2": k2, "k3": k3}
