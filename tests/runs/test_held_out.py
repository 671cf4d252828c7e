"""Losses on held-out examples, one by one, and what their change means."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.run_directory import RunDirectory
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.runs.held_out import HeldOut, paired_gain, row_losses

MODEL = language_model(SIZES["tiny"], ComputeConfig())


def test_the_gain_is_a_ratio_of_sums_with_the_error_of_one() -> None:
    before, after, tokens = np.array([4.0, 9.0, 2.0]), np.array([2.0, 5.0, 3.0]), np.array([2.0, 4.0, 1.0])
    gain, error = paired_gain(before, after, tokens)
    assert gain == pytest.approx(5 / 7)
    residuals = [2 - 2 * 5 / 7, 4 - 4 * 5 / 7, -1 - 5 / 7]
    assert error == pytest.approx(math.sqrt(3 / 2 * sum(each**2 for each in residuals)) / 7)
    assert paired_gain(before, before, tokens) == (0, 0)
    assert paired_gain(before[:1], after[:1], tokens[:1]) == (1.0, None)


@pytest.mark.slow
def test_losses_of_rows_are_those_of_the_full_logits(packed_batch) -> None:
    params = MODEL.init(jax.random.key(0))
    batch = packed_batch(4, 96, 512)
    logits = MODEL.unembed(MODEL.head(params), MODEL.hidden(params, batch.tokens, batch.positions, batch.segment_ids))
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], axis=-1)[..., 0]
    expected = -(logprobs * batch.loss_weights).sum(axis=1)
    np.testing.assert_allclose(row_losses(MODEL, params, batch), expected, rtol=1e-5)


def rows_of(packed_batch, seed: int, padded: int) -> dict[str, np.ndarray]:
    batch = packed_batch(8, 32, 512, seed=seed)
    rows = {name: np.array(array) for name, array in vars(batch).items() if name != "normalizer"}
    for array in rows.values():
        array[8 - padded :] = 0
    return rows


@pytest.mark.slow
def test_the_first_losses_are_kept_for_later_lives_of_a_run(packed_batch, tmp_path) -> None:
    batches = [rows_of(packed_batch, 0, padded=0), rows_of(packed_batch, 1, padded=3)]
    run = RunDirectory(tmp_path)
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        before, after = (jax.jit(MODEL.init)(jax.random.key(seed)) for seed in range(2))
        held_out = HeldOut(MODEL, lambda: batches, run)
        (said,) = held_out.begin(before)
        first = float(said.removeprefix("held-out loss before training: ").split()[0])
        assert held_out.verdict is None
        unchanged = held_out(before)
        assert not held_out.verdict.is_believed
        assert unchanged == {
            "validation_loss": pytest.approx(first, abs=5e-5),
            "validation_gain": 0.0,
            "validation_gain_standard_error": 0.0,
        }
        changed = held_out(after)
        later = HeldOut(MODEL, lambda: batches, run)
        assert later.begin(None) == []
        assert later(after) == changed
    first = unchanged["validation_loss"]
    assert changed["validation_gain"] == pytest.approx(first - changed["validation_loss"])
    verdict = later.verdict
    assert (verdict.figure, verdict.baseline, verdict.count) == (changed["validation_loss"], first, 13)
    assert verdict.difference == pytest.approx(changed["validation_gain"])
    assert verdict.difference_error == changed["validation_gain_standard_error"]
    assert changed["validation_gain_standard_error"] > 0
    tokens = sum(rows["loss_weights"].sum() for rows in batches)
    nats = sum(
        float(row_losses(MODEL, before, jax.tree.map(jnp.asarray, batch_of(packed_batch, rows))).sum())
        for rows in batches
    )
    assert first == pytest.approx(nats / tokens, rel=1e-6)


def batch_of(packed_batch, rows):
    return packed_batch(8, 32, 512).replace(**rows)
