"""Every loss on preferences gives what a hand computes for ratios and lengths that are round."""

import math

import jax
import jax.numpy as jnp
import pytest

from llama_jax.objectives import kto, preference

RATIOS, LENGTHS = jnp.array([2.0, -1.0]), jnp.array([4.0, 2.0])
"""beta (2 + 1) = 1.5 at beta 0.5; per token 0.5 and -0.5."""


def cost(margin):
    """-log sigmoid."""
    return math.log1p(math.exp(-margin))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


BY_HAND = {
    "sigmoid": ({}, cost(1.5)),  # 0.201413
    "length_normalized": ({}, cost(0.5)),  # 0.474077
    "hinge": ({}, 0.0),
    "ipo_sequence": ({}, (3 - 1) ** 2),
    "ipo_tokens": ({}, 0.0),
    "conservative": ({"label_smoothing": 0.1}, 0.9 * cost(1.5) + 0.1 * cost(-1.5)),  # 0.351413
    "robust": ({"label_smoothing": 0.1}, (0.9 * cost(1.5) - 0.1 * cost(-1.5)) / 0.8),  # 0.013913
    "apo_zero": ({}, 1 - sigmoid(1.0) + sigmoid(-0.5)),  # 0.646482
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_on_ratios_are_those_of_a_hand(name) -> None:
    settings, expected = BY_HAND[name]
    assert float(getattr(preference, name)(RATIOS, LENGTHS, beta=0.5, **settings)) == pytest.approx(expected, abs=1e-6)


def test_hinge_costs_what_the_margin_lacks() -> None:
    assert float(preference.hinge(RATIOS, LENGTHS, beta=0.1)) == pytest.approx(1 - 0.3)


def test_losses_without_a_reference_are_those_of_a_hand() -> None:
    """p per token 1/2 and 1/4: odds 1 and 1/3."""
    logprobs = jnp.log(jnp.array([0.5, 0.25])) * LENGTHS
    found = float(preference.simpo(logprobs, LENGTHS, beta=2.0, target_margin=1.0))
    assert found == pytest.approx(cost(2 * math.log(2) - 1), abs=1e-6)
    odds = float(preference.odds_ratio(logprobs, LENGTHS, beta=0.1))
    assert odds == pytest.approx(0.1 * math.log(4 / 3), abs=1e-6)  # -log sigmoid(log 3)
    assert float(preference.orpo(logprobs, LENGTHS, beta=0.1)) == pytest.approx(odds + math.log(2), abs=1e-6)


def test_certain_completions_have_finite_odds_and_gradients() -> None:
    value, gradient = jax.value_and_grad(lambda x: preference.orpo(x, LENGTHS, beta=0.1))(jnp.zeros(2))
    assert math.isfinite(float(value)) and bool(jnp.isfinite(gradient).all())


def test_kto_is_that_of_a_hand() -> None:
    """KL (3 - 1) / 4 = 0.5, so beta (ratio - KL) is 0.75 for the good one and -0.75 for the bad one."""
    kl = kto.kl_estimate(jnp.array(2.0), jnp.array(4.0))
    losses = kto.kto_losses(RATIOS, jnp.array([1.0, 0.0]), kl, beta=0.5, undesirable_weight=2.0)
    assert losses.tolist() == pytest.approx([1 - sigmoid(0.75), 2 * (1 - sigmoid(0.75))], abs=1e-6)


def test_divergence_is_never_below_0_and_has_no_gradient() -> None:
    assert float(kto.kl_estimate(jnp.array(-2.0), jnp.array(4.0))) == 0
    assert float(jax.grad(lambda total: kto.kl_estimate(total, jnp.array(4.0)))(2.0)) == 0
