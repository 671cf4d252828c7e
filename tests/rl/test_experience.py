"""One iteration put together, from rewards to advantages and returns, against a loop over numbers."""

import dataclasses

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.rl.learners.experience import Said, lesson, normalized
from llama_jax.rl.ppo_config import KlConfig, PpoConfig, PpoRewardsConfig
from llama_jax.rl.rollouts import Rollouts
from llama_jax.rl.scores import RunningMoments

RANDOM = np.random.default_rng(0)
LENGTHS, LONGEST = [3, 1, 5, 2], 5
ENDED = np.array([True, True, False, True])
SCORES = np.array([1.0, -0.5, 2.0, 0.25], np.float32)


def rollouts() -> Rollouts:
    completions = [[7] * length for length in LENGTHS]
    return Rollouts([[1]] * 4, completions, np.zeros((4, LONGEST), np.float32), ENDED)


def said() -> Said:
    mask = rollouts().mask
    return Said(*(np.where(mask, RANDOM.normal(size=(4, LONGEST)), 0).astype(np.float32) for _ in range(3)))


def by_hand(config: PpoConfig, scores: np.ndarray, said: Said, coefficient: float) -> tuple[np.ndarray, np.ndarray]:
    """Advantages before they are whitened, and returns."""
    rewards, learned = np.zeros((2, 4, LONGEST))
    for n, length in enumerate(LENGTHS):
        for t in range(length):
            log_ratio = float(said.old[n, t]) - float(said.reference[n, t])
            kl = log_ratio if config.kl.estimate == "k1" else np.exp(-log_ratio) - 1 + log_ratio
            rewards[n, t] = -coefficient * kl + (scores[n] if t == length - 1 else 0)
            learned[n, t] = 1
    if config.rewards.whiten:
        there = rewards[learned > 0]
        rewards = np.where(learned > 0, (rewards - there.mean()) / np.sqrt(there.var(ddof=1)) + there.mean(), 0)
    advantages = np.zeros((4, LONGEST))
    for n, length in enumerate(LENGTHS):
        later = 0.0
        for t in reversed(range(length)):
            following = float(said.values[n, t + 1]) if t + 1 < length else 0.0
            error = rewards[n, t] + config.discount * following - float(said.values[n, t])
            advantages[n, t] = later = error + config.discount * config.trace_decay * later
    return advantages, np.where(learned > 0, advantages + said.values, 0)


def whitened(values: np.ndarray, learned: np.ndarray) -> np.ndarray:
    there = values[learned]
    return np.where(learned, (values - there.mean()) / np.sqrt(there.var(ddof=1) + 1e-8), 0)


@pytest.mark.parametrize("estimate", ["k1", "k3"])
@pytest.mark.parametrize("whiten", [False, True])
def test_an_iteration_by_hand(estimate, whiten) -> None:
    config = PpoConfig(
        kl=KlConfig(estimate=estimate), rewards=PpoRewardsConfig(whiten=whiten), discount=0.99, trace_decay=0.9
    )
    told, mask = said(), rollouts().mask
    found = lesson(config, rollouts(), SCORES, told, 0.3)
    advantages, returns = by_hand(config, SCORES, told, 0.3)
    np.testing.assert_allclose(found.advantages, whitened(advantages, mask), atol=1e-5)
    np.testing.assert_allclose(found.returns, returns, atol=1e-5)
    np.testing.assert_array_equal(found.learned, mask)
    log_ratio = np.where(mask, told.old - told.reference, 0)
    each = log_ratio if estimate == "k1" else np.where(mask, np.exp(-log_ratio) - 1 + log_ratio, 0)
    assert found.divergence == pytest.approx(each.sum() / 4, abs=1e-5)
    assert found.record["kl"] == pytest.approx(each.sum() / mask.sum(), abs=1e-5)
    assert found.record["kl_penalty"] == pytest.approx(-0.3 * found.divergence, abs=1e-6)
    left = (returns - told.values)[mask].var() / returns[mask].var()
    assert found.record["explained_variance"] == pytest.approx(1 - left, abs=1e-4)


def test_what_has_no_reward_or_was_cut_off_teaches_nothing() -> None:
    scores = SCORES.copy()
    scores[0] = np.nan
    config, told = PpoConfig(learn_truncated=False), said()
    found = lesson(config, rollouts(), scores, told, 0.0)
    learned = np.zeros((4, LONGEST), np.bool_)
    learned[1, :1], learned[3, :2] = True, True
    np.testing.assert_array_equal(found.learned, learned)
    advantages, _ = by_hand(config, np.nan_to_num(scores), told, 0.0)
    np.testing.assert_allclose(found.advantages, whitened(advantages, learned), atol=1e-5)
    assert np.isfinite(found.returns).all() and found.record["score"] == pytest.approx(scores[1:].mean())


def test_scores_are_normalised_and_then_clipped() -> None:
    rewards = np.array([1.0, 3.0, np.nan, 8.0], np.float32)
    same, seen = normalized(PpoRewardsConfig(), rewards, RunningMoments())
    np.testing.assert_array_equal(same, rewards)
    assert seen == RunningMoments()
    of_batch, _ = normalized(PpoRewardsConfig(normalize="batch", clip=1.0), rewards, RunningMoments())
    deviation = np.std([1, 3, 8], ddof=1)
    np.testing.assert_allclose(of_batch, [-3 / deviation, -1 / deviation, np.nan, 1.0], rtol=1e-6)
    config = PpoRewardsConfig(normalize="running")
    _, seen = normalized(config, rewards, RunningMoments())
    second, seen = normalized(config, np.array([2.0, 2.0], np.float32), seen)
    every = [1, 3, 8, 2, 2]
    np.testing.assert_allclose(second, [(2 - np.mean(every)) / np.std(every, ddof=1)] * 2, rtol=1e-5)
    assert seen.samples == 5


MISTAKES = {
    "a clip of nothing": ({"clip": 0.0}, "--clip 0.0: must lie between 0 and 1"),
    "a dual clip within": ({"dual_clip": 1.1}, "--dual_clip 1.1: must be above 1 \\+ clip, 1.2"),
    "a coefficient that cannot adapt": ({"kl": {"coefficient": 0.0, "target": 6.0}}, "kl.coefficient: 0 stays 0"),
    "a step of nothing": ({"reward_step": 3}, "--reward_step 3: is of a --reward_model"),
    "modules beside the adapter": ({"lora": {"modules_to_save": ("lm_head",)}}, "lora.modules_to_save: must be empty"),
    "nothing that rewards": (
        {"data": {"source": "mine.jsonl"}},
        "--reward_model: none given, and no rewards.functions",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_settings_that_contradict_each_other_are_refused(name) -> None:
    changes, told = MISTAKES[name]
    default = PpoConfig()
    with pytest.raises(UserError, match=told):
        made = {
            key: dataclasses.replace(getattr(default, key), **value) if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        dataclasses.replace(default, **made)
