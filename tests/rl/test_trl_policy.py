"""What TRL's own lines make of a small rollout (`oracle/record_trl_policy.py`): losses and their gradients, advantages,
returns, whitening and importance weights, within 1e-5."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_rollouts import CORRECTIONS, GROUP, GRPO_LOSSES, LENGTHS, MASK, PPO_SETTINGS, C, N, rollout
from sweeps import some

from llama_jax.core.batches import PolicyBatch
from llama_jax.objectives import policy
from llama_jax.objectives.divergence import ESTIMATES, k3
from llama_jax.objectives.value import value_losses
from llama_jax.rl import advantages, aggregation, groups
from llama_jax.rl.correction import importance_weights

ORACLE = Path(__file__).parents[1] / "oracle"
GIVEN = rollout()
WEIGHTS = np.array([1.0, 0.5, 2.0], np.float32)
OF_SEQUENCES = np.array([[0.5], [1.0], [2.0], [0.0]], np.float32)
AGGREGATIONS = {
    "grpo": aggregation.sequence_mean,
    "bnpo": aggregation.token_mean,
    "dr_grpo": aggregation.fixed_length,
    "dapo": aggregation.rollout_token_mean,
    "cispo": aggregation.rollout_token_mean,
}


@pytest.fixture(scope="module")
def ppo():
    return np.load(ORACLE / "trl_ppo.npz")


@pytest.fixture(scope="module")
def grpo():
    return np.load(ORACLE / "trl_grpo.npz")


def close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def policy_loss(surrogate, shares_of, given_advantages, weights=1.0, **settings):
    """Value and gradient of the loss by the new log-probabilities."""
    shares = shares_of(MASK, aggregation.Rollout(float(MASK.sum()), C))
    fields = {name: np.zeros((N, C), field.dtype) for name, field in PolicyBatch.arrays().items()}
    fields |= {"loss_weights": MASK.astype(np.float32), "normalizer": np.float32(MASK.sum())}
    fields |= {"segment_ids": MASK.astype(np.int32), "advantages": np.broadcast_to(given_advantages, (N, C))}
    fields |= {"old_logprobs": GIVEN["old"], "reference_logprobs": GIVEN["reference"], "shares": shares.shares}
    fields |= {"share_normalizer": np.float32(shares.normalizer)}
    fields |= {"importance_weights": np.broadcast_to(np.float32(weights), (N, C))}
    batch = PolicyBatch(**jax.tree.map(jnp.asarray, fields))

    def loss(logprobs):
        terms = policy.policy_terms(surrogate, logprobs, batch, **settings)
        return jnp.sum(batch.shares * terms.losses) / batch.share_normalizer

    return jax.value_and_grad(loss)(jnp.asarray(GIVEN["new"]))


@pytest.mark.parametrize("name", some(GRPO_LOSSES, ["cispo", "gspo_kl"]))
def test_losses_of_grpo_and_its_variants(grpo, name) -> None:
    settings = dict(GRPO_LOSSES[name])
    kind, high = settings["loss_type"], settings.get("epsilon_high")
    surrogate = policy.weighted(high) if kind == "cispo" else policy.clipped(0.2, high, settings.get("delta"))
    chosen = {"log_ratios": policy.of_sequences if settings.get("level") == "sequence" else policy.of_tokens}
    if "beta" in settings:
        chosen["divergence"] = policy.Divergence(settings["beta"], k3, settings.get("corrected", True))
    given = GIVEN["advantages"][:, None]
    loss, gradient = policy_loss(surrogate, AGGREGATIONS[kind], given, OF_SEQUENCES, **chosen)
    close(loss, grpo[f"loss_{name}"])
    close(gradient, grpo[f"gradient_{name}"])


def test_loss_and_advantages_of_rloo(grpo) -> None:
    given = GIVEN["advantages"][:, None]
    whole = {"log_ratios": policy.of_whole_sequences}
    loss, gradient = policy_loss(policy.clipped(0.2), aggregation.sequence_mean, given, **whole)
    close(loss, grpo["loss_rloo"])
    close(gradient, grpo["gradient_rloo"])
    penalty = np.where(MASK, GIVEN["old"] - GIVEN["reference"], 0).sum(axis=1)
    for rewards in ("rewards", "more_rewards"):
        summed = groups.weighted_sum(GIVEN[rewards], WEIGHTS) - 0.05 * penalty
        for normalized in (False, True):
            found = groups.leave_one_out_advantages(summed, GROUP, normalized=normalized)
            close(found, grpo[f"rloo_{rewards}_{normalized}"])


@pytest.mark.parametrize("rewards", ["rewards", "more_rewards"])
def test_advantages_of_groups(grpo, rewards) -> None:
    summed = groups.weighted_sum(GIVEN[rewards], WEIGHTS)
    for scaling in ("group", "batch", "none"):
        expected = grpo[f"advantages_{rewards}_{scaling}_sum_then_normalize"]
        close(groups.group_advantages(summed, GROUP, scaling), expected)
    found = groups.normalized_then_summed(GIVEN[rewards], WEIGHTS, GROUP)
    close(found, grpo[f"advantages_{rewards}_group_normalize_then_sum"])


@pytest.mark.parametrize(("mode", "low", "high"), CORRECTIONS)
def test_importance_weights(grpo, mode, low, high) -> None:
    found = importance_weights(GIVEN["old"], GIVEN["sampler"], MASK, mode, (low, high))
    close(found[MASK], grpo[f"weights_{mode}_{low}"][MASK])


@pytest.mark.parametrize("name", some(PPO_SETTINGS, ["k3"]))
def test_rewards_advantages_and_losses_of_ppo(ppo, name) -> None:
    settings = PPO_SETTINGS[name]
    lengths = jnp.asarray(LENGTHS)
    places = advantages.reward_places(lengths, C, after_end=True)
    valued = advantages.valued(lengths, C, after_end=True)
    estimate = ESTIMATES[settings["kl_estimator"]]
    divergence = jnp.where(MASK, estimate(jnp.asarray(GIVEN["old"]), jnp.asarray(GIVEN["reference"])), 0.0)
    rewards = advantages.token_rewards(jnp.asarray(GIVEN["scores"]), places, divergence, 0.05)
    if settings["whiten_rewards"]:
        rewards = advantages.whitened(rewards, valued, shift_mean=False)
    close(rewards, ppo[f"rewards_{name}"])
    values = jnp.asarray(GIVEN["values"])
    found, returns = advantages.gae(rewards, values, valued, 0.97, 0.9)
    close(np.where(valued, returns, 0), np.where(valued, ppo[f"returns_{name}"], 0))
    found = advantages.whitened(found, jnp.asarray(MASK))
    close(found, ppo[f"advantages_{name}"])
    loss, gradient = policy_loss(policy.clipped(0.2), aggregation.token_mean, found)
    close(loss, ppo[f"policy_loss_{name}"])
    close(gradient, ppo[f"policy_gradient_{name}"])

    def value_loss(new):
        return jnp.where(valued, value_losses(new, values, returns, 0.2)[0], 0).sum() / valued.sum()

    loss, gradient = jax.value_and_grad(value_loss)(jnp.asarray(GIVEN["new_values"]))
    close(loss, ppo[f"value_loss_{name}"])
    close(0.1 * gradient, ppo[f"value_gradient_{name}"])


def test_whitening(ppo) -> None:
    for shift in (True, False):
        found = advantages.whitened(jnp.asarray(GIVEN["values"]), jnp.asarray(MASK), shift_mean=shift)
        close(found[MASK], ppo[f"whitened_{shift}"][MASK])
