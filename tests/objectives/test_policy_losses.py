"""Losses of policies and critics equal numbers worked out by hand, by value and gradient; microbatches only add."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.batches import PolicyBatch, PolicyTextBatch, ValueBatch
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives import policy
from llama_jax.objectives.divergence import k1, k2, k3
from llama_jax.objectives.token_logprobs import token_logprobs
from llama_jax.objectives.value import clipped_value, value_losses
from llama_jax.training.step import _gradients

RANDOM = np.random.default_rng(0)
MODEL = language_model(dataclasses.replace(SIZES["tiny"], num_layers=1), ComputeConfig())
SCORING = language_model(dataclasses.replace(SIZES["tiny"], num_layers=1, scalar_head=True), ComputeConfig())


def row(**fields) -> PolicyBatch:
    """One row of two completions, of 2 and 3 sampled tokens, after a position that is only read, and padding."""
    wanted = np.array([[0, 1, 1, 0, 1, 1, 1, 0]], np.float32)
    arrays = {name: np.zeros((1, 8), field.dtype) for name, field in PolicyBatch.arrays().items()}
    arrays |= {"loss_weights": wanted, "shares": wanted, "importance_weights": np.ones((1, 8), np.float32)}
    arrays |= {"segment_ids": np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32)}
    arrays |= {"normalizer": np.float32(5), "share_normalizer": np.float32(5)}
    laid = {name: np.zeros((1, 8), np.float32) for name in fields}
    for name, values in fields.items():
        laid[name][wanted > 0] = values
        laid[name][wanted == 0] = np.nan if name != "shares" else 0  # of what nobody wants nothing may come through
    return PolicyBatch(**jax.tree.map(jnp.asarray, arrays | laid))


def logprobs_with(ratios) -> jax.Array:
    values = np.full((1, 8), np.nan, np.float32)
    values[0, [1, 2, 4, 5, 6]] = np.log(ratios)
    return jnp.asarray(values)


def of_tokens(array) -> list[float]:
    return np.asarray(array)[0, [1, 2, 4, 5, 6]].tolist()


RATIOS, ADVANTAGES = [1.5, 0.5, 1.5, 0.5, 4.0], [2.0, 2.0, -2.0, -2.0, -1.0]


@pytest.mark.parametrize(
    ("surrogate", "losses", "low", "high"),
    [
        (policy.clipped(0.2), [-2.4, -1.0, 3.0, 1.6, 4.0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]),
        (policy.clipped(0.2, 0.28), [-2.56, -1.0, 3.0, 1.6, 4.0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]),
        (policy.clipped(0.2, 0.6), [-3.0, -1.0, 3.0, 1.6, 4.0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]),
        (policy.clipped(0.2, dual=3.0), [-2.4, -1.0, 3.0, 1.6, 3.0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]),
        (
            policy.weighted(1.4),
            [
                -1.4 * 2 * math.log(1.5),
                -0.5 * 2 * math.log(0.5),
                1.4 * 2 * math.log(1.5),
                math.log(0.5),
                1.4 * math.log(4),
            ],
            [0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
        ),
    ],
)
def test_surrogates_by_hand(surrogate, losses, low, high) -> None:
    found = surrogate(jnp.log(jnp.array(RATIOS)), jnp.log(jnp.array(RATIOS)), jnp.array(ADVANTAGES))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-6)
    np.testing.assert_array_equal(found.clipped_low, low)
    np.testing.assert_array_equal(found.clipped_high, high)


@pytest.mark.parametrize(
    ("surrogate", "gradient"),
    [
        # By log p: -r A where nothing is clipped, 0 where it is.
        (policy.clipped(0.2), [0, -1.0, 3.0, 0, 4.0]),
        (policy.clipped(0.2, dual=3.0), [0, -1.0, 3.0, 0, 0]),
        (policy.weighted(1.4), [-2.8, -1.0, 2.8, 1.0, 1.4]),
    ],
)
def test_gradients_of_surrogates_by_hand(surrogate, gradient) -> None:
    loss = lambda logprobs: surrogate(logprobs, logprobs, jnp.array(ADVANTAGES)).losses.sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(jnp.log(jnp.array(RATIOS))), gradient, rtol=1e-6, atol=1e-7)


def test_on_policy_the_gradient_is_that_of_the_advantage_times_log_p() -> None:
    for surrogate in (policy.clipped(0.2), policy.clipped(0.2, dual=3.0), policy.weighted()):
        loss = lambda logprobs: surrogate(logprobs + 2.0, logprobs, jnp.array(ADVANTAGES)).losses.sum()  # noqa: B023, E731
        np.testing.assert_allclose(jax.grad(loss)(jnp.full(5, -2.0)), [-a for a in ADVANTAGES], rtol=1e-6)


def test_divergences_by_hand() -> None:
    logprobs, reference = jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.25, 0.8]))
    np.testing.assert_allclose(k1(logprobs, reference), [math.log(2), -math.log(4)], rtol=1e-6)
    np.testing.assert_allclose(k2(logprobs, reference), [math.log(2) ** 2 / 2, math.log(4) ** 2 / 2], rtol=1e-6)
    expected = [0.5 - 1 + math.log(2), 4 - 1 - math.log(4)]
    np.testing.assert_allclose(k3(logprobs, reference), expected, rtol=1e-6)
    assert np.isfinite(k3(jnp.array([-1e4]), jnp.array([0.0]))).all()


def test_the_corrected_divergence_has_the_gradient_of_the_kl() -> None:
    """Expected over what the policy samples: of k3 times the ratio exactly that of KL(policy || reference), of plain k3
    that of KL(reference || policy)."""
    logits, reference = jnp.array([0.3, -1.0, 0.7]), jax.nn.log_softmax(jnp.array([1.0, 0.0, -0.5]))
    probabilities = jax.nn.softmax(logits)

    def penalty(logits, corrected):
        logprobs = jax.nn.log_softmax(logits)
        ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
        return jnp.sum(probabilities * k3(logprobs, reference) * (ratio if corrected else 1.0))

    def kl(p, q):
        return jnp.sum(jnp.exp(p) * (p - q))

    forward = jax.grad(lambda logits: kl(jax.nn.log_softmax(logits), reference))(logits)
    backward = jax.grad(lambda logits: kl(reference, jax.nn.log_softmax(logits)))(logits)
    np.testing.assert_allclose(jax.grad(penalty)(logits, True), forward, atol=1e-6)
    np.testing.assert_allclose(jax.grad(penalty)(logits, False), backward, atol=1e-6)


def test_terms_of_a_row_by_hand_and_nothing_else_comes_through() -> None:
    batch = row(old_logprobs=0.0, advantages=ADVANTAGES, importance_weights=2.0, reference_logprobs=np.log([1] * 5))
    divergence = policy.Divergence(0.1, k3, corrected=True)
    terms = policy.policy_terms(policy.clipped(0.2), logprobs_with(RATIOS), batch, divergence=divergence)
    kl = [(1 / r - 1 + math.log(r)) * r for r in RATIOS]
    expected = [2 * loss + 0.1 * k for loss, k in zip([-2.4, -1.0, 3.0, 1.6, 4.0], kl, strict=True)]
    np.testing.assert_allclose(of_tokens(terms.losses), expected, rtol=1e-5)
    assert np.isfinite(terms.losses).all() and np.asarray(terms.losses)[0, [0, 3, 7]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(of_tokens(terms.kl), kl, rtol=1e-5)
    plain = divergence._replace(corrected=False)
    terms = policy.policy_terms(policy.clipped(0.2), logprobs_with(RATIOS), batch, divergence=plain)
    np.testing.assert_allclose(of_tokens(terms.kl), [k / r for k, r in zip(kl, RATIOS, strict=True)], rtol=1e-5)
    metrics = policy._metrics(terms, batch)
    assert float(metrics["ratio"]) == pytest.approx(8 / 5)
    assert float(metrics["policy_loss"]) == pytest.approx(2 * (-2.4 - 1 + 3 + 1.6 + 4) / 5)
    assert float(metrics["clip_fraction_low"]) == float(metrics["clip_fraction_high"]) == pytest.approx(0.2)
    assert float(metrics["approximate_kl"]) == pytest.approx(np.mean(np.log(RATIOS) ** 2) / 2)


@pytest.mark.parametrize(
    ("unit", "ratios"),
    [
        (policy.of_tokens, RATIOS),
        (policy.of_sequences, [0.75 ** (1 / 2)] * 2 + [3 ** (1 / 3)] * 3),
        (policy.of_whole_sequences, [0.75] * 2 + [3.0] * 3),
    ],
)
def test_ratios_of_tokens_and_of_completions_by_hand(unit, ratios) -> None:
    batch = row(old_logprobs=0.0, advantages=[1, 1, -1, -1, -1])
    terms = policy.policy_terms(policy.clipped(100.0), logprobs_with(RATIOS), batch, log_ratios=unit)
    signed = [-ratios[0], -ratios[1], *ratios[2:]]
    np.testing.assert_allclose(of_tokens(terms.losses), signed, rtol=1e-5)


def test_values_by_hand() -> None:
    values, old, returns = jnp.array([1.0, 1.0, 0.1]), jnp.array([0.5, 0.9, 0.0]), jnp.array([1.2, 1.2, 0.0])
    losses, clipped = value_losses(values, old, returns, 0.2)
    np.testing.assert_allclose(losses, [0.5 * 0.5**2, 0.5 * 0.2**2, 0.5 * 0.1**2], rtol=1e-5)
    np.testing.assert_array_equal(clipped, [True, False, False])
    np.testing.assert_allclose(value_losses(values, old, returns, None)[0], [0.02, 0.02, 0.005], rtol=1e-5)


def filled(kind, rows: int = 4, length: int = 12):
    """A batch of random rows, the log-probabilities such as nothing in it is at a bound."""
    arrays = {}
    for name, field in kind.arrays().items():
        shape = field.shape(rows, length)
        arrays[name] = RANDOM.integers(1, 500, shape) if field.dtype == np.int32 else RANDOM.normal(0, 1, shape)
    segments = np.repeat([[1] * 5 + [2] * 5 + [0] * 2], rows, axis=0)
    for prefix in ("", "text_") if kind is PolicyTextBatch else ("",):
        arrays[f"{prefix}segment_ids"] = segments
        arrays[f"{prefix}positions"] = np.tile([*range(5), *range(5), 0, 0], (rows, 1))
        weights = (RANDOM.random((rows, length)) < 0.6) & (segments > 0)
        arrays[f"{prefix}loss_weights"], arrays[f"{prefix}normalizer"] = weights, weights.sum()
    if "shares" in arrays:
        arrays |= {"shares": arrays["loss_weights"] * RANDOM.random((rows, length)), "share_normalizer": 7.0}
        arrays["old_logprobs"] = RANDOM.normal(-6.2, 0.3, (rows, length))
        arrays["reference_logprobs"] = RANDOM.normal(-6.2, 0.3, (rows, length))
    return kind(**{name: jnp.asarray(array, kind.arrays()[name].dtype) for name, array in arrays.items()})


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def by_all_logits(params, batch, temperature):
    """Log-probabilities and entropies, the plain way."""
    logits = MODEL.unembed(MODEL.head(params), MODEL.hidden(params, batch.tokens, batch.positions, batch.segment_ids))
    every = jax.nn.log_softmax(logits / temperature)
    return jnp.take_along_axis(every, batch.targets[..., None], -1)[..., 0], -(jnp.exp(every) * every).sum(-1)


@pytest.mark.slow
def test_the_objective_is_the_sum_of_its_terms_by_value_and_gradient(params) -> None:
    batch = filled(PolicyBatch)
    settings = {"log_ratios": policy.of_sequences, "divergence": policy.Divergence(0.3, k3)}
    surrogate = policy.clipped(0.2, 0.3)
    objective = policy.clipped_policy(MODEL, surrogate, **settings, entropy_coefficient=0.1, temperature=0.7)

    def plain(params):
        logprobs, entropy = by_all_logits(params, batch, 0.7)
        terms = policy.policy_terms(surrogate, logprobs, batch, **settings)
        bonus = jnp.sum(batch.loss_weights * entropy) / batch.normalizer
        return jnp.sum(batch.shares * terms.losses) / batch.share_normalizer - 0.1 * bonus, bonus

    (found, metrics), gradient = jax.jit(jax.value_and_grad(lambda p: objective(p, {}, batch, None), has_aux=True))(
        params
    )
    (expected, bonus), expected_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    assert float(found) == float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(float(bonus), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), gradient, expected_gradient)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PolicyTextBatch, ValueBatch])
def test_microbatches_add_up_to_the_batch(params, kind) -> None:
    batch = filled(kind)
    if kind is ValueBatch:
        objective, params = clipped_value(SCORING), jax.jit(SCORING.init)(jax.random.key(0))
    else:
        objective = policy.with_text(policy.clipped_policy(MODEL, policy.clipped()), MODEL, 27.8)
    found = [
        jax.jit(lambda p, count=count: _gradients(objective, count, p, {}, batch, jax.random.key(0)))(params)
        for count in (1, 4)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), *found)
    if kind is PolicyTextBatch:
        metrics = found[0][1]
        text = -token_logprobs(
            MODEL.unembed,
            MODEL.head(params),
            MODEL.hidden(params, batch.text_tokens, batch.text_positions, batch.text_segment_ids),
            batch.text_targets,
        )
        mean = float(jnp.sum(text * batch.text_loss_weights) / batch.text_normalizer)
        assert float(metrics["text_loss"]) == pytest.approx(mean, rel=1e-5)
        assert float(metrics["loss"]) == pytest.approx(float(metrics["policy_loss"]) + 27.8 * mean, rel=1e-5)
