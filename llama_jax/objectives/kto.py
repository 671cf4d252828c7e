"""The loss on single completions that are good or bad: KTO (arXiv:2402.01306)."""

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Float


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
    return jax.lax.stop_gradient(jnp.maximum(total / count, 0.0))
