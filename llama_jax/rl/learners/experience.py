"""From the rewards of completions to what a policy and its critic learn: the numbers of one iteration, put together.
Arrays are of the whole rollout; see `rl.advantages`."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Bool, Float
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.objectives.divergence import ESTIMATES
from llama_jax.rl.advantages import gae, moments, reward_places, token_rewards, whitened
from llama_jax.rl.ppo_config import PpoConfig, PpoRewardsConfig
from llama_jax.rl.rollouts import Rollouts
from llama_jax.rl.scores import RunningMoments


class Said(NamedTuple):
    """What the models of a run say of each token of a rollout, `[N, C]`."""

    old: Float[np.ndarray, "N C"]
    """log p under the policy, in nats."""
    reference: Float[np.ndarray, "N C"]
    """The same under the model that the run began with; where nothing is held to that, as `old`."""
    values: Float[np.ndarray, "N C"]
    """What the critic expects before it is chosen."""


class Lesson(NamedTuple):
    """What is learned from a rollout."""

    advantages: Float[np.ndarray, "N C"]
    returns: Float[np.ndarray, "N C"]
    learned: Bool[np.ndarray, "N C"]
    """The tokens that are learned from: not those of completions without a reward, nor, if the config says so, of those
    that no end token ended."""
    divergence: float
    """Mean over completions of the estimated divergence from the reference, in nats, all their tokens together."""
    record: MetricsRecord


def normalized(
    config: PpoRewardsConfig, rewards: Float[np.ndarray, "N"], seen: RunningMoments
) -> tuple[Float[np.ndarray, "N"], RunningMoments]:
    """Rewards normalised and clipped as the config says, and all that was seen with them."""
    if config.normalize == "running":
        seen = seen.with_scores(rewards)
        rewards = seen.normalized(rewards)
    if config.normalize == "batch":
        rewards = RunningMoments().with_scores(rewards).normalized(rewards)
    if config.clip is not None:
        rewards = np.clip(rewards, -config.clip, config.clip)
    return rewards.astype(np.float32), seen


def lesson(
    config: PpoConfig, rollouts: Rollouts, scores: Float[np.ndarray, "N"], said: Said, coefficient: float
) -> Lesson:
    """What is learned from completions with these scores, which are NaN where there is none.

    Args:
        coefficient: Of the divergence, in reward per nat.
    """
    mask, known = rollouts.mask, ~np.isnan(scores)
    learned = mask & known[:, None] & (rollouts.ended[:, None] | config.learn_truncated)
    divergence = jnp.where(mask, ESTIMATES[config.kl.estimate](jnp.asarray(said.old), jnp.asarray(said.reference)), 0.0)
    places = reward_places(jnp.asarray(rollouts.lengths), mask.shape[1])
    rewards = token_rewards(jnp.asarray(np.nan_to_num(scores, nan=0.0)), places, divergence, coefficient)
    if config.rewards.whiten:
        rewards = whitened(rewards, jnp.asarray(learned), shift_mean=False)
    values = jnp.asarray(said.values)
    raw, returns = gae(rewards, values, jnp.asarray(mask), config.discount, config.trace_decay)
    advantages = np.asarray(whitened(raw, jnp.asarray(learned)))
    spent = np.asarray(divergence.sum(axis=1))
    record = {
        "score": float(scores[known].mean()) if known.any() else None,
        "score_deviation": float(scores[known].std()) if known.any() else None,
        "kl": float(np.asarray(divergence)[mask].mean()),
        "kl_per_completion": float(spent.mean()),
        "kl_coefficient": coefficient,
        "kl_penalty": -coefficient * float(spent.mean()),
        **_of_values(np.asarray(returns), said.values, learned),
    }
    return Lesson(advantages, np.asarray(returns), learned, float(spent.mean()), record)


def _of_values(
    returns: Float[np.ndarray, "N C"], values: Float[np.ndarray, "N C"], learned: Bool[np.ndarray, "N C"]
) -> MetricsRecord:
    """`explained_variance` is the share of the variance of returns that the critic has foreseen: 1 is all of it, 0 what
    a constant does; None where returns do not differ."""
    mean, variance = (float(each) for each in moments(jnp.asarray(returns), jnp.asarray(learned)))
    value, _ = moments(jnp.asarray(values), jnp.asarray(learned))
    _, left = moments(jnp.asarray(returns - values), jnp.asarray(learned))
    return {
        "return_mean": mean,
        "value_mean": float(value),
        "explained_variance": 1 - float(left) / variance if variance > 0 else None,
    }
