"""How much better than expected each sampled token was: rewards of tokens, generalised advantage estimation, whitening.
Arrays are completions padded on the right, `[N, C]`, of the whole rollout; masks are carried, never found in ids."""

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Bool, Float, Int

_EPSILON = 1e-8


def token_rewards(
    scores: Float[Array, "N"],
    places: Int[Array, "N"],
    divergence: Float[Array, "N C"],
    coefficient: Float[Array, ""] | float,
) -> Float[Array, "N C"]:
    """The penalty -coefficient * divergence at each token, and the score of the completion at one of them.

    Args:
        places: Where the score goes: the token that ends the completion, or what `reward_places` gives.
        divergence: Estimates of the KL of each token, 0 where there is none.
    """
    rewards = -coefficient * divergence
    return rewards.at[jnp.arange(len(scores)), places].add(scores)


def reward_places(lengths: Int[Array, "N"], longest: int, *, after_end: bool = False) -> Int[Array, "N"]:
    """The place of each completion's score: its last token, or the one after it, where there is room for one, as TRL
    and the code of arXiv:1909.08593 have it; values are then needed there too (`valued`)."""
    return jnp.minimum(lengths, longest - 1) if after_end else lengths - 1


def valued(lengths: Int[Array, "N"], longest: int, *, after_end: bool = False) -> Bool[Array, "N C"]:
    """Where a critic's value counts: at all sampled tokens, and where the score is."""
    return jnp.arange(longest)[None] <= reward_places(lengths, longest, after_end=after_end)[:, None]


@jax.jit
def gae(
    rewards: Float[Array, "N C"],
    values: Float[Array, "N C"],
    mask: Bool[Array, "N C"],
    discount: Float[Array, ""] | float,
    decay: Float[Array, ""] | float,
) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
    """Advantages (arXiv:1506.02438, equation 16) and returns, which are advantages plus values; 0 outside of the mask.

    Args:
        rewards: Of choosing each token.
        values: What was expected before it was chosen; after the last one nothing is.
        mask: Tokens that were sampled, from the first to the last of each completion.
        discount: gamma.
        decay: lambda.
    """
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = rewards + discount * following - values

    def earlier(later: Array, error: Array) -> tuple[Array, Array]:
        advantage = error + discount * decay * later
        return advantage, advantage

    _, advantages = jax.lax.scan(earlier, jnp.zeros(len(rewards)), errors.T, reverse=True)
    advantages = jnp.where(mask, advantages.T, 0.0)
    return advantages, advantages + values


@jax.jit
def moments(values: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and biased variance of what the mask selects, all of it together."""
    count = jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, values, 0.0).sum() / count
    return mean, jnp.where(mask, jnp.square(values - mean), 0.0).sum() / count


def whitened(
    values: Float[Array, "*B"], mask: Bool[Array, "*B"], *, shift_mean: bool = True, unbiased: bool = True
) -> Float[Array, "*B"]:
    """The values with variance 1 and mean 0 over what the mask selects, which is to be the whole rollout, never a
    microbatch of it; 0 elsewhere.

    Args:
        shift_mean: False: the mean stays, as for rewards, whose sign says something.
        unbiased: The variance with n - 1 below, as TRL has it; False: with n, as in the code of arXiv:1909.08593.
    """
    mean, variance = moments(values, mask)
    count = mask.sum()
    variance = variance * count / jnp.maximum(count - 1, 1) if unbiased else variance
    found = (values - mean) * jax.lax.rsqrt(variance + _EPSILON)
    return jnp.where(mask, found if shift_mean else found + mean, 0.0)
