"""Advantages within groups, and what is done to scores, equal numbers worked out by hand."""

import numpy as np
import pytest

from llama_jax.core.errors import CannotGoOnError
from llama_jax.rl import aggregation, groups, scores
from llama_jax.rl.correction import agreement, importance_weights

NAN = np.nan
TWO = np.array([1.0, 2.0, 6.0, 5.0, 5.0, 8.0])
"""Two groups of three: means 3 and 6, squared differences 14 and 6; of all the mean is 4.5, and they are 33.5."""


@pytest.mark.parametrize(
    ("scaling", "scale"),
    [
        ("group", [1 / (7**0.5 + 1e-4)] * 3 + [1 / (3**0.5 + 1e-4)] * 3),
        ("batch", [1 / (6.7**0.5 + 1e-4)] * 6),
        ("none", [1.0] * 6),
    ],
)
def test_group_advantages_by_hand(scaling, scale) -> None:
    found = groups.group_advantages(TWO, 3, scaling)
    np.testing.assert_allclose(found, np.array([-2, -1, 3, -1, -1, 2]) * scale, rtol=1e-6)


def test_leaving_one_out_by_hand() -> None:
    found = groups.leave_one_out_advantages(TWO, 3)
    np.testing.assert_allclose(found, [1 - 4, 2 - 3.5, 6 - 1.5, 5 - 6.5, 5 - 6.5, 8 - 5])
    normalized = groups.leave_one_out_advantages(TWO, 3, normalized=True)
    np.testing.assert_allclose(normalized, found / (found.std(ddof=1) + 1e-4))


def test_completions_without_a_reward_teach_nothing_and_are_part_of_no_mean() -> None:
    rewards = np.array([1.0, NAN, 3.0, NAN, NAN, 7.0])
    np.testing.assert_allclose(groups.group_advantages(rewards, 3, "none"), [-1, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(groups.group_advantages(rewards, 3), np.array([-1, 0, 1, 0, 0, 0]) / (2**0.5 + 1e-4))
    np.testing.assert_allclose(groups.leave_one_out_advantages(rewards, 3), [-2, 0, 2, 0, 0, 0])
    assert groups.without_contrast(rewards, 3).tolist() == [False, True]
    assert not np.any(groups.group_advantages(np.full(4, NAN), 2))


def test_groups_whose_rewards_are_equal_are_found() -> None:
    rewards = np.array([1, 1, 1, 0, 1, 1, 0.1 + 0.2, 0.3, 0.3])
    assert groups.without_contrast(rewards, 3).tolist() == [True, False, True]
    np.testing.assert_allclose(groups.group_advantages(rewards, 3)[[0, 1, 2, 6, 7, 8]], 0, atol=1e-8)


def test_several_rewards_are_summed_or_first_normalized() -> None:
    rewards = np.array([[1.0, 100.0], [3.0, NAN], [NAN, NAN], [2.0, 300.0]])
    weights = np.array([1.0, 0.1])
    np.testing.assert_allclose(groups.weighted_sum(rewards, weights), [11, 3, NAN, 32])
    found = groups.normalized_then_summed(
        np.array([[1.0, 100.0], [3.0, 300.0], [1.0, 300.0], [3.0, 100.0]]), weights, 2
    )
    # Each is -a or a, a = 1 / (sqrt(2) + 1e-4 / its half width): the sums are -1.1, 1.1, -0.9 and 0.9 times that.
    np.testing.assert_allclose(
        found, np.array([-1.1, 1.1, -0.9, 0.9]) / np.std([-1.1, 1.1, -0.9, 0.9], ddof=1), rtol=3e-4
    )
    alone = groups.normalized_then_summed(rewards, weights, 2)
    assert np.isfinite(alone).all() and alone[2] == 0 and alone[0] < alone[1]


def test_scores_by_hand() -> None:
    given, ended = np.array([1.0, 2.0, NAN]), np.array([True, False, False])
    np.testing.assert_array_equal(scores.with_missing_end_penalty(given, ended, 1.5), [1, 0.5, NAN])
    np.testing.assert_array_equal(scores.with_missing_end_score(given, ended, -1.0), [1, -1, NAN])
    lengths = np.array([10, 80, 90, 95, 100])
    np.testing.assert_allclose(scores.overlong_penalties(lengths, 100, 20, 2.0), [0, 0, -1, -1.5, -2])


def test_running_moments_are_those_of_all_scores_so_far() -> None:
    parts = [np.array([1.0, 2.0, NAN]), np.array([NAN]), np.array([6.0, -3.0, 0.5])]
    known = scores.RunningMoments()
    assert known.normalized(parts[0])[0] == 1.0 and known.deviation == 1.0
    for part in parts:
        known = known.with_scores(part)
    everything = np.array([1.0, 2.0, 6.0, -3.0, 0.5])
    assert (known.samples, known.mean) == (5, pytest.approx(everything.mean()))
    assert known.deviation == pytest.approx(everything.std(ddof=1))
    np.testing.assert_allclose(known.normalized(everything), (everything - everything.mean()) / everything.std(ddof=1))


@pytest.mark.parametrize(
    ("divergence", "factor"), [(6.0, 1.0), (6.6, 1.0032), (3.0, 0.9936), (60.0, 1.0064), (0.0, 0.9936)]
)
def test_the_coefficient_follows_the_divergence(divergence, factor) -> None:
    found = scores.adapted_coefficient(0.15, divergence, target=6.0, horizon=10_000.0, samples=320)
    assert found == pytest.approx(0.15 * factor, rel=1e-6)


MASK = np.array([[True, True, False], [True, True, True]])
TRAINING = np.log(np.array([[0.4, 0.2, 1.0], [0.8, 0.1, 0.5]], np.float32))
SAMPLER = np.log(np.array([[0.2, 0.1, 0.001], [0.8, 0.5, NAN]], np.float32))


@pytest.mark.parametrize(
    ("correction", "bounds", "weights"),
    [
        ("none", (0.0, 3.0), [[1, 1], [1, 1, 1]]),
        ("token_truncate", (0.5, 1.5), [[1.5, 1.5], [1, 0.5, 1]]),
        ("token_mask", (0.5, 3.0), [[2, 2], [1, 0, 1]]),
        ("sequence_truncate", (0.0, 3.0), [[3, 3], [0.2] * 3]),
        ("sequence_mask", (0.0, 3.0), [[0, 0], [0.2] * 3]),
        ("sequence_mask", (0.5, 4.1), [[4, 4], [0] * 3]),
    ],
)
def test_importance_weights_by_hand(correction, bounds, weights) -> None:
    found = importance_weights(TRAINING, SAMPLER, MASK, correction, bounds)
    np.testing.assert_allclose(found[MASK], np.concatenate(weights), rtol=1e-5)
    assert np.isfinite(found).all()


def test_sampler_and_training_are_compared_where_there_are_tokens() -> None:
    found = agreement(TRAINING, SAMPLER, MASK)
    logs = np.log([2, 2, 1, 0.2])
    assert found.mean_difference == pytest.approx(np.abs(logs).mean(), rel=1e-5)
    assert found.largest_difference == pytest.approx(np.log(5), rel=1e-5)
    assert (found.ratio, found.unknown) == (pytest.approx(5.2 / 4, rel=1e-5), 1)
    with pytest.raises(CannotGoOnError, match="rollout: the sampler gave no log-probability of 1 tokens"):
        found.checked()
    with pytest.raises(CannotGoOnError, match=r"differ by 1.6 nats in the log-probability of a token, in float32"):
        found._replace(unknown=0).checked()
    assert agreement(TRAINING, TRAINING + 5e-4, MASK).checked().largest_difference == pytest.approx(5e-4, rel=1e-2)


LEARNED = np.array([[True, True, False, False], [True, True, True, True], [False] * 4])


@pytest.mark.parametrize(
    ("shares_of", "shares", "normalizer"),
    [
        (aggregation.sequence_mean, [1 / 2, 1 / 4, 0], 3),
        (aggregation.token_mean, [1, 1, 0], 6),
        (aggregation.rollout_token_mean, [1, 1, 0], 7.5),
        (aggregation.fixed_length, [1, 1, 0], 12),
    ],
)
def test_shares_by_hand(shares_of, shares, normalizer) -> None:
    found = shares_of(LEARNED, aggregation.Rollout(tokens_per_update=7.5, longest=4))
    np.testing.assert_allclose(found.shares, LEARNED * np.array(shares, np.float32)[:, None])
    assert found.normalizer == normalizer
