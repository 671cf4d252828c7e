"""Scores of held-out answers: the same whatever lies beside them, and reported as they are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from completion_rows import batch_of, row_of

from llama_jax.core.batches import completion_batch
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.run_directory import RunDirectory
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.reward import bradley_terry, regression
from llama_jax.runs.held_out_scores import HeldOutScores, completion_lengths, end_scores

MODEL = language_model(replace(SIZES["tiny"], num_layers=2, scalar_head=True), ComputeConfig())
PARAMS = MODEL.init(jax.random.key(0))
RANDOM = np.random.default_rng(0)
PAIRS = [[RANDOM.integers(1, 500, size).tolist() for size in sizes] for sizes in ((5, 9), (12, 3), (7, 7))]
LOSSES = bradley_terry()


def scores_in(rows, K) -> np.ndarray:
    ends, _ = end_scores(MODEL, LOSSES, PARAMS, batch_of(rows, 2, K))
    return np.asarray(ends)


def test_a_score_depends_neither_on_padding_nor_on_what_else_is_in_the_batch():
    alone = np.stack([scores_in([row_of([pair], [0], 2, 1, length=16)], 1)[0, 0] for pair in PAIRS])
    # Read by itself, nothing behind it, a sequence ends where the row does.
    bare = [float(MODEL.scores(PARAMS, MODEL.hidden(PARAMS, jnp.array([ids])))[0, -1]) for ids in PAIRS[0]]
    np.testing.assert_allclose(alone[0], bare, atol=1e-5)
    together = scores_in([row_of(PAIRS, [0] * 3, 2, 4, length=64), row_of(PAIRS[1:], [0] * 2, 2, 4, length=64)], 4)
    np.testing.assert_allclose(together[0, :3], alone, atol=1e-5)
    np.testing.assert_allclose(together[1, :2], alone[1:], atol=1e-5)
    assert np.abs(alone).min() > 1e-3 and np.ptp(alone) > 0.1


def test_lengths_are_those_of_the_completions():
    row = row_of(PAIRS[:2], [0, 0], 2, 3, length=64)
    row["loss_weights"][[3, 4, 7, 40]] = 1  # two of the first, one of the second, and one in padding
    stacked = {name: array[None] for name, array in row.items()}
    assert completion_lengths(stacked).tolist() == [[[2, 1], [0, 0], [0, 0]]]


def held_out(rows, losses, members, tmp_path) -> HeldOutScores:
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    K = rows[0]["starts"].shape[0]
    return HeldOutScores(MODEL, losses, completion_batch(K, members), lambda: [stacked], RunDirectory(tmp_path))


@pytest.mark.parametrize("members", [2, 1])
def test_what_is_recorded_is_of_the_examples_alone(members, tmp_path):
    examples = PAIRS if members == 2 else [pair[:1] for pair in PAIRS]
    rows = [row_of(examples[:2], [1.0, 0], members, 2), row_of(examples[2:], [2.0], members, 2)]
    for row in rows:
        row["loss_weights"][row["segment_ids"] > 0] = 1
    losses = LOSSES if members == 2 else regression
    evaluation = held_out(rows, losses, members, tmp_path)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        (said,) = evaluation.begin(PARAMS)
        assert evaluation.begin(None) == [] and evaluation.verdict is None
        record = evaluation(PARAMS)
    scores = np.concatenate([scores_in([row_of([pair], [0], 2, 1)], 1)[0, 0][None, :members] for pair in PAIRS])
    labels = np.array([1.0, 0, 2])
    if members == 2:
        margins = scores[:, 0] - scores[:, 1]
        expected = {
            "validation_loss": np.log1p(np.exp(labels - margins)).mean(),
            "validation_reward_margin": margins.mean(),
        }
        assert record["validation_accuracy"] == pytest.approx((margins > 0).mean())
        assert record["validation_length_accuracy"] == pytest.approx(0.5)  # one longer, one shorter, one as long
    else:
        expected = {"validation_loss": np.square(scores[:, 0] - labels).mean()}
        assert record["validation_squared_error"] == pytest.approx(record["validation_loss"])
    expected |= {"reward_mean": scores.mean(), "reward_deviation": scores.std()}
    assert {name: record[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert evaluation.verdict.count == 3 and said.startswith("before training: held-out ")


def test_nothing_is_said_where_nothing_is_held_out(tmp_path):
    rows = [row_of([], [], 2, 1)]
    evaluation = held_out(rows, LOSSES, 2, tmp_path)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert (evaluation.begin(PARAMS), evaluation(PARAMS), evaluation.result()) == ([], {}, [])
    assert evaluation.verdict is None


def test_scores_that_are_no_numbers_are_reported_and_not_drawn(tmp_path):
    evaluation = held_out([row_of(PAIRS, [0] * 3, 2, 4, length=64)], LOSSES, 2, tmp_path)
    lost = PARAMS | {"score": {"kernel": jnp.full_like(PARAMS["score"]["kernel"], jnp.nan)}}
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        record = evaluation(lost)
    assert np.isnan(record["validation_loss"]) and "reward_mean" not in record
    assert not evaluation.verdict.is_believed and not (tmp_path / "scores.png").exists()
