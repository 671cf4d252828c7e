"""Losses of reward models equal what their formulas give by hand, whatever else is in a row and on any mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from completion_rows import batch_of, row_of
from sweeps import some

from llama_jax.core.batches import completion_batch
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.placing import place_whole_batch
from llama_jax.objectives.completions import at_ends, sequence_sums
from llama_jax.objectives.reward import bradley_terry, bradley_terry_losses, per_token, regression, scored

RANDOM = np.random.default_rng(0)


class TableModel:
    """Gives each id a score of its own, so that the scores of a row are known."""

    def hidden(self, params, tokens, positions=None, segment_ids=None, rng=None):
        return params["table"][tokens][..., None]

    def scores(self, params, hidden):
        return hidden[..., 0]


def sigmoid_loss(x: float) -> float:
    return math.log(1 + math.exp(-x))


PAIR = ([[5, 1, 2, 3], [5, 1, 4]], [[7, 6], [7, 2, 3, 9, 6]])
TABLE = np.array([0.0, 0.5, -1.0, 2.0, 0.25, 9.0, 1.5, -3.0, 8.0, 0.75], np.float32)
"""Scores of the ids: the end scores of the two pairs are 2 and 0.25, 1.5 and 1.5."""


def test_sums_and_ends_are_those_of_each_sequence():
    batch = batch_of([row_of(PAIR, [0, 0], 2, 3), row_of([[[8, 3], [1]]], [0], 2, 3)], 2, 3)
    values = jnp.asarray(TABLE)[batch.tokens] + jnp.where(batch.segment_ids == 0, jnp.nan, 0)
    assert sequence_sums(values, batch).tolist() == [[[10.5, 9.75], [-1.5, 0.25], [0, 0]], [[10, 0.5], [0, 0], [0, 0]]]
    ends = at_ends(values, batch)
    assert ends[:, :2].tolist() == [[[2.0, 0.25], [1.5, 1.5]], [[2.0, 0.5], [8.0, 8.0]]]


def test_pairs_are_compared_by_their_last_scores():
    batch = batch_of([row_of(PAIR, [0.5, 0], 2, 3)], 2, 3)
    objective = scored(TableModel(), completion_batch(3, 2), bradley_terry(centering=0.1))
    loss, metrics = objective({"table": jnp.asarray(TABLE)}, {}, batch, None)
    expected = (sigmoid_loss(1.75 - 0.5) + 0.1 * 2.25**2 + math.log(2) + 0.1 * 9) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": pytest.approx(expected, rel=1e-6),
        "accuracy": 0.5,
        "rewards_chosen": 1.75,
        "rewards_rejected": 0.875,
        "reward_margin": 0.875,
    }


def test_pairs_are_compared_at_each_position_from_the_first_difference_on():
    batch = batch_of([row_of(PAIR, [0, 0], 2, 3)], 2, 3)
    found = per_token(jnp.asarray(TABLE)[batch.tokens], batch)
    # The first: 2 against 4 and, the rejected one having ended, 3 against 4. The second: chosen 6 and its end against
    # 2, 3, 9, 6.
    first = (sigmoid_loss(-1 - 0.25) + sigmoid_loss(2 - 0.25)) / 2
    second = sum(sigmoid_loss(1.5 - score) for score in (-1, 2, 0.75, 1.5)) / 4
    np.testing.assert_allclose(found, [[first, second, 0]], rtol=1e-6)


def deepspeed_chat(chosen, rejected, chosen_ids, rejected_ids):
    """The loss of a pair as DeepSpeed-Chat states it, without padding: each text that has ended keeps its last id and
    score to the length of the longer one."""
    length = max(len(chosen), len(rejected))
    (chosen, rejected), (chosen_ids, rejected_ids) = (
        [[*each, *[each[-1]] * (length - len(each))] for each in pair]
        for pair in ((chosen, rejected), (chosen_ids, rejected_ids))
    )
    different = [t for t in range(length) if chosen_ids[t] != rejected_ids[t]]
    first = different[0] if different else length - 1
    return np.mean([sigmoid_loss(c - r) for c, r in zip(chosen[first:], rejected[first:], strict=True)])


def test_per_token_losses_are_those_of_the_published_formula():
    lengths = [(6, 6), (3, 6), (6, 2), (1, 1)]
    pairs = []
    for first, second in lengths:
        shared = RANDOM.integers(1, 400, 2).tolist()
        pairs.append([shared + RANDOM.integers(1, 400, n).tolist() for n in (first, second)])
    pairs.append([[3, 4, 5], [3, 4, 5]])
    rows = [row_of([pair], [0], 2, 1) for pair in pairs]
    batch = batch_of(rows, 2, 1)
    values = RANDOM.standard_normal((len(rows), 32)).astype(np.float32)
    expected = []
    for pair, row in zip(pairs, values, strict=True):
        chosen, rejected = row[: len(pair[0])], row[len(pair[0]) : len(pair[0]) + len(pair[1])]
        expected.append([deepspeed_chat(chosen, rejected, *pair)])
    np.testing.assert_allclose(per_token(jnp.asarray(values), batch), expected, rtol=1e-5)


def test_scores_are_regressed_and_a_score_of_zero_counts():
    batch = batch_of([row_of([[[8, 3]], [[5, 1]]], [0, 4.5], 1, 3)], 1, 3)
    loss, metrics = scored(TableModel(), completion_batch(3, 1), regression)(
        {"table": jnp.asarray(TABLE)}, {}, batch, None
    )
    assert float(loss) == float(metrics["loss"]) == (2**2 + 4**2) / 2
    assert float(metrics["rewards"]) == 1.25 and float(metrics["absolute_error"]) == 3


def test_centering_and_margins_enter_as_published():
    found = bradley_terry_losses(jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), jnp.array([0.0, 1.0]), 0.01)
    np.testing.assert_allclose(found, [sigmoid_loss(0.5) + 0.0225, sigmoid_loss(-6) + 0.01], rtol=1e-6)


def random_batch(K):
    def pair():
        shared = RANDOM.integers(1, 300, 2).tolist()
        return [shared + RANDOM.integers(1, 300, RANDOM.integers(1, 5)).tolist() for _ in range(2)]

    rows = [row_of([pair() for _ in range(K if number % 3 else 1)], [0.25] * K, 2, K) for number in range(8)]
    return rows


LOSSES = {"bradley_terry": bradley_terry(0.01), "per_token": per_token}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", some([(2, 2, 1, 2), (1, 8), (1, 1, 1, 8)], [(2, 2, 1, 2)]))
def test_the_mesh_changes_nothing(name, sizes):
    kind, rows = completion_batch(2, 2), random_batch(2)
    table = RANDOM.standard_normal(300).astype(np.float32)
    stacked = {field: np.stack([row[field] for row in rows]) for field in rows[0]}

    def found(mesh):
        with jax.set_mesh(mesh):
            batch = place_whole_batch(mesh, kind, stacked, len(rows))
            objective = jax.jit(jax.value_and_grad(scored(TableModel(), kind, LOSSES[name]), has_aux=True))
            return jax.tree.map(np.asarray, objective({"table": table}, {}, batch, None))

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7),
        found(make_mesh(MeshConfig(*sizes))),
        found(make_mesh(MeshConfig(), jax.devices()[:1])),
    )
