"""DPO and KTO through the one step: an update is the same however its batch is cut or spread, what is not there counts
for nothing, and a model that is its own reference begins where the formulas say."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import some

from llama_jax.core.batches import completion_batch
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.placing import place_whole_batch
from llama_jax.data.preferences.examples import CollectedCompletions, with_shared_prompts
from llama_jax.data.preferences.rows import completion_row
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.kto import kto
from llama_jax.objectives.preference import preference, sigmoid
from llama_jax.runs.completion_sums import completion_sums
from llama_jax.runs.methods import low_rank_adapter
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

B, T, K, V = 8, 48, 2, 300
MODEL = language_model(SIZES["tiny"], ComputeConfig())
KIND = completion_batch(K, 2)
OBJECTIVES = {
    "dpo": lambda model: preference(model, functools.partial(sigmoid, beta=0.5), KIND, beta=0.5, sft_weight=0.3),
    "kto": lambda model: kto(model, KIND, beta=0.5, desirable_weight=1.5),
}


@functools.cache
def rows() -> dict[str, np.ndarray]:
    """Random examples of two completions of 3 to 7 ids after 3 of a prompt, each row with one or two of them; reference
    log-probs that differ from the model's, so that the losses are not at their middle."""
    random = np.random.default_rng(0)
    made = []
    for number in range(B):
        row, place = KIND.empty_row(T), 0
        for k in range(1 + number % 2):
            prompt = random.integers(1, V, 3)
            for m in range(2):
                ids = np.concatenate([prompt, random.integers(1, V, random.integers(3, 8))])
                here = slice(place, place + len(ids))
                row["tokens"][here], row["positions"][here] = ids, range(len(ids))
                row["targets"][here] = [*ids[1:], 0]
                row["loss_weights"][place + 2 : here.stop - 1] = 1
                row["segment_ids"][here] = 2 * k + m + 1
                row["starts"][k, m], row["ends"][k, m] = place, here.stop - 1
                row["reference"][k, m] = -7.5 * (len(ids) - 3) + random.normal()
                place = here.stop
            row["labels"][k], row["example_weights"][k] = (number + k) % 2, 1
        made.append(row)
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def after_one_step(name: str, microbatches: int, mesh: tuple[int, ...]) -> tuple[dict[str, float], np.ndarray]:
    """The metrics, and a matrix of the model."""
    config = TrainingConfig(steps=10, batch_size=B, microbatches=microbatches, warmup_steps=0)
    with jax.set_mesh(make_mesh(MeshConfig(*mesh), jax.devices()[: math.prod(mesh)])):
        program = make_program(MODEL, OBJECTIVES[name](MODEL), config, T, seed=0)
        state, metrics = program.step(*program.init(jax.random.key(0)), program.place_batch(rows(), B))
        return {key: float(value) for key, value in metrics.items()}, np.asarray(state.trainable["final_norm"]["scale"])


@functools.cache
def whole(name: str) -> tuple[dict[str, float], np.ndarray]:
    return after_one_step(name, 1, (1,))


@pytest.mark.parametrize(
    "case",
    some(
        [
            (name, microbatches, mesh)
            for name in OBJECTIVES
            for microbatches, mesh in ((2, (1,)), (4, (1,)), (1, (2, 2, 2)), (1, (2, 1, 2, 2)), (4, (1, 2, 2, 2)))
        ],
        [("kto", 4, (1,))],
    ),
)
def test_an_update_is_the_same_in_parts_and_on_any_mesh(case) -> None:
    name, *cut = case
    metrics, scale = after_one_step(name, *cut)
    expected, scale_of_whole = whole(name)
    assert metrics == pytest.approx(expected, rel=2e-5, abs=2e-5)
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=2e-6)
    np.testing.assert_allclose(scale, scale_of_whole, atol=2e-6)
    if name == "kto":
        assert expected["kl"] > 0.1  # or else the cut would make no difference


def test_metrics_are_means_over_the_examples_that_are_there() -> None:
    params = jax.jit(MODEL.init)(jax.random.key(0))
    with jax.set_mesh(make_mesh(MeshConfig(1), jax.devices()[:1])):
        logprobs = completion_sums(MODEL, KIND, params, [rows()])
    there = rows()["example_weights"] > 0
    rewards = 0.5 * (logprobs - rows()["reference"][there])
    with jax.set_mesh(make_mesh(MeshConfig(1), jax.devices()[:1])):
        batch = place_whole_batch(jax.sharding.get_mesh(), KIND, rows(), B)
        _, metrics = jax.jit(OBJECTIVES["dpo"](MODEL))(params, {}, batch, None)
    found = {key: float(value) for key, value in metrics.items()}
    margins = rewards[:, 0] - rewards[:, 1]
    sft = -logprobs[:, 0].sum() / sum(
        int(rows()["loss_weights"][rows()["segment_ids"] == number].sum()) for number in (1, 3)
    )
    assert found["sft_loss"] == pytest.approx(sft, rel=1e-5)
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean() + 0.3 * sft, rel=1e-5)
    assert found["accuracy"] == pytest.approx((margins > 0).mean(), abs=1e-6)
    assert found["reward_margin"] == pytest.approx(margins.mean(), abs=1e-4)
    assert found["logprobs_chosen"] == pytest.approx(logprobs[:, 0].mean(), rel=1e-5)


def test_a_prompt_that_is_shared_changes_no_log_prob() -> None:
    """Two pairs in a row: one whose answers begin alike, and one whose prompts do not, as cuts leave them."""
    collected, random = CollectedCompletions(2), np.random.default_rng(0)
    prompt, other, *answers = (random.integers(1, V, size).tolist() for size in (9, 5, 4, 6, 3, 7))
    for sequences in (
        [(prompt, answers[0]), (prompt, answers[0][:2] + answers[1])],
        [(prompt, answers[2]), (other, answers[3])],
    ):
        collected.add([(asked + ids, [False] * len(asked) + [True] * len(ids)) for asked, ids in sequences], 0.0)
    apart = collected.examples()
    shared = with_shared_prompts(apart)
    assert shared.shared.tolist() == [8, 0]
    assert shared.places.tolist() == [apart.places[0] - 8, apart.places[1]]
    params = jax.jit(MODEL.init)(jax.random.key(0))
    found = []
    for kind, examples in ((KIND, apart), (completion_batch(K, 2, shares_prompts=True), shared)):
        row = completion_row(kind, examples, [0, 1], 64)
        assert int((row["segment_ids"] > 0).sum()) == examples.places.sum()
        with jax.set_mesh(make_mesh(MeshConfig(1), jax.devices()[:1])):
            found.append(completion_sums(MODEL, kind, params, [{name: array[None] for name, array in row.items()}]))
    np.testing.assert_allclose(found[1], found[0], rtol=2e-6)


def test_dpo_begins_at_the_logarithm_of_2_exactly() -> None:
    """Adapters start at zero, and the log-probs of the base, found by another program, are those of the first step."""
    method = low_rank_adapter(AdapterConfig(dropout=0.0, target_modules=("all-linear",)), "float32", 1e-3)
    config = TrainingConfig(steps=10, batch_size=B, warmup_steps=0)
    with jax.set_mesh(make_mesh(MeshConfig(1), jax.devices()[:1])):
        objective = preference(MODEL, functools.partial(sigmoid, beta=0.5), KIND, beta=0.5)
        program = make_program(MODEL, objective, config, T, seed=0, partition=method.partition(MODEL))
        base = jax.jit(MODEL.init)(jax.random.key(0))
        sums = completion_sums(MODEL, KIND, base, [rows()])
        reference = np.zeros_like(rows()["reference"])
        reference[rows()["example_weights"] > 0] = sums
        state, frozen = program.begin(method.begin(base, jax.random.key(1)))
        _, metrics = program.step(state, frozen, program.place_batch({**rows(), "reference": reference}, B))
    assert float(metrics["loss"]) == float(jnp.float32(math.log(2)))
    assert float(metrics["reward_margin"]) == 0 and float(metrics["accuracy"]) == 0.5
