"""Rewards of tokens, advantages and what whitens them equal numbers worked out by hand, and a loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.rl import advantages as adv

RANDOM = np.random.default_rng(0)


def test_advantages_by_hand() -> None:
    rewards, values = jnp.array([[1.0, 0.0, 2.0], [3.0, 9.0, 9.0]]), jnp.array([[0.5, 1.0, 1.5], [1.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    found, returns = adv.gae(rewards, values, mask, 0.9, 0.5)
    last = 2 - 1.5
    middle = 0 + 0.9 * 1.5 - 1 + 0.45 * last
    first = 1 + 0.9 * 1.0 - 0.5 + 0.45 * middle
    np.testing.assert_allclose(found, [[first, middle, last], [2, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[first + 0.5, middle + 1, 2], [3, 0, 0]], rtol=1e-6)


def test_the_scan_is_the_loop() -> None:
    rewards, values = RANDOM.normal(size=(2, 5, 17))
    lengths = np.array([17, 1, 5, 16, 9])
    mask = np.arange(17)[None] < lengths[:, None]
    found, returns = adv.gae(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), 0.99, 0.95)
    for n, length in enumerate(lengths):
        later, expected = 0.0, np.zeros(17)
        for t in reversed(range(length)):
            following = values[n, t + 1] if t + 1 < length else 0.0
            later = rewards[n, t] + 0.99 * following - values[n, t] + 0.99 * 0.95 * later
            expected[t] = later
        np.testing.assert_allclose(found[n], expected, atol=1e-5)
        np.testing.assert_allclose(returns[n], np.where(mask[n], expected + values[n], 0), atol=1e-5)


def test_without_discount_and_values_an_advantage_is_what_is_still_to_come() -> None:
    rewards, mask = RANDOM.normal(size=(3, 6)).astype(np.float32), np.ones((3, 6), np.bool_)
    found, returns = adv.gae(rewards, np.zeros_like(rewards), mask, 1.0, 1.0)
    np.testing.assert_allclose(found, np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], atol=1e-5)
    np.testing.assert_array_equal(found, returns)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Of 1, 2 and 6 the mean is 3 and the squared differences sum up to 14.
        ({}, [-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5, 0]),
        ({"unbiased": False}, np.array([-2, -1, 3, 0]) / (14 / 3) ** 0.5),
        ({"shift_mean": False}, [3 - 2 / 7**0.5, 3 - 1 / 7**0.5, 3 + 3 / 7**0.5, 0]),
    ],
)
def test_whitening_by_hand(settings, expected) -> None:
    values, mask = jnp.array([[1.0, 2.0], [6.0, 100.0]]), jnp.array([[True, True], [True, False]])
    np.testing.assert_allclose(np.ravel(adv.whitened(values, mask, **settings)), expected, rtol=1e-5)


def test_whitening_of_one_or_none_is_a_number() -> None:
    values = jnp.array([3.0, np.nan])
    for mask in ([True, False], [False, False]):
        assert np.asarray(adv.whitened(values, jnp.array(mask))).tolist() == [0.0, 0.0]


def test_rewards_of_tokens_by_hand() -> None:
    lengths, divergence = jnp.array([2, 3]), jnp.array([[0.5, 1.0, 0.0], [0.0, -0.5, 2.0]])
    at_end = adv.reward_places(lengths, 3)
    assert at_end.tolist() == [1, 2]
    rewards = adv.token_rewards(jnp.array([10.0, 20.0]), at_end, divergence, 0.1)
    np.testing.assert_allclose(rewards, [[-0.05, 9.9, 0], [0, 0.05, 19.8]], rtol=1e-6)
    # One token later, where there is room.
    after = adv.reward_places(lengths, 3, after_end=True)
    assert after.tolist() == [2, 2]
    assert adv.valued(lengths, 3).tolist() == [[True, True, False], [True] * 3]
    assert adv.valued(lengths, 3, after_end=True).tolist() == [[True] * 3] * 2
