"""Rollouts: sampled from the live weights, and the trainer finds each token as likely as the sampler did."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core import placing, sharding, tree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.inference.config import SamplingConfig
from llama_jax.model import lora
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.policy import tempered
from llama_jax.objectives.token_logprobs import token_logprobs
from llama_jax.rl.config import RolloutConfig
from llama_jax.rl.correction import agreement
from llama_jax.rl.rollouts import Rollouts, Sampler, rollout_slots
from llama_jax.rl.rows import laid_rows

MODEL = language_model(dataclasses.replace(SIZES["tiny"], num_layers=1), ComputeConfig())
LONGEST = 8
PROMPTS = [[1, 40, 99], [1], [1, *range(100, 107)]]
SAMPLING = SamplingConfig(max_new_tokens=LONGEST, temperature=0.8)
STOPS = tuple(range(3, 35))


@pytest.fixture(scope="module")
def params():
    # Large weights make the choice depend on the whole prompt.
    return jax.tree.map(lambda leaf: leaf * 2, jax.jit(MODEL.init)(jax.random.key(5)))


@pytest.fixture(scope="module")
def adapted(params):
    adapter = lora.init_adapter(AdapterConfig(rank=2), params, jax.random.key(0))
    return lora.with_adapter(params, adapter)


def test_slots_are_no_more_than_are_needed_and_such_as_the_mesh_divides() -> None:
    config = RolloutConfig(slots=64)
    with jax.set_mesh(make_mesh(MeshConfig(1, 8))):
        assert [rollout_slots(config, completions) for completions in (1, 20, 64, 1000)] == [8, 24, 64, 64]
        with pytest.raises(UserError, match=r"rollout.slots: 12 rows are not divisible by the 8 devices"):
            rollout_slots(RolloutConfig(slots=12), 1000)


def changed(params):
    """The same with another adapter."""
    leaves = tree.flatten(params)
    return tree.unflatten({path: leaf + 0.1 if path.endswith("/b") else leaf for path, leaf in leaves.items()})


def sampler_of(params) -> Sampler:
    return Sampler(MODEL, params, SAMPLING, slots=8, length=16, row_counts=(8,), stop_ids=STOPS)


@pytest.fixture(scope="module")
def sampler(adapted) -> Sampler:
    return sampler_of(adapted)


@jax.jit
def forward(params, batch):
    hidden = MODEL.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    return token_logprobs(tempered(MODEL, 0.8), MODEL.head(params), hidden, batch.targets)


def trained_logprobs(params, rollouts: Rollouts, mesh=None) -> np.ndarray:
    rows = laid_rows(rollouts.prompts, rollouts.completions, LONGEST, 24, multiple=8)
    fields = jax.tree.map(jnp.asarray, rows.fields)
    batch = TokenBatch(**fields, normalizer=jnp.float32(1))
    if mesh is not None:
        batch = placing.place_whole_batch(mesh, TokenBatch, rows.fields, len(rows))
    return rows.gathered(np.asarray(forward(params, batch)))


@pytest.mark.slow
def test_training_finds_tokens_as_likely_as_the_sampler_also_after_an_update(sampler, adapted) -> None:
    first = sampler.sample(PROMPTS, 4, seed=0, first=0)
    assert first.prompts[3:5] == [PROMPTS[0], PROMPTS[1]] and len(first.completions) == 12
    assert {len(each) for each in first.completions} != {LONGEST} and first.ended.any()
    assert [each[-1] in STOPS for each in first.completions] == first.ended.tolist()
    assert first.mask.sum() == first.lengths.sum() and not first.logprobs[~first.mask].any()
    trained = trained_logprobs(adapted, first)
    assert agreement(trained, first.logprobs, first.mask).checked(1e-4).ratio == pytest.approx(1, abs=1e-4)
    compiled, embedding = sampler.compilations, sampler._layers["embedding"]
    sampler.update(changed(adapted))
    assert sampler._layers["embedding"] is embedding  # the base stays where it is
    second = sampler.sample(PROMPTS, 4, seed=0, first=0)
    assert agreement(trained_logprobs(changed(adapted), second), second.logprobs, second.mask).checked(1e-4)
    with pytest.raises(CannotGoOnError, match="sampler and training differ by"):
        agreement(trained_logprobs(adapted, second), second.logprobs, second.mask).checked()
    sampler.update(adapted)
    again = sampler.sample(PROMPTS, 4, seed=0, first=0)
    assert again.completions == first.completions != second.completions
    assert sampler.compilations == compiled
    np.testing.assert_array_equal(again.logprobs, first.logprobs)


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_prompts_number_not_on_what_is_asked_beside_it(sampler) -> None:
    together = sampler.sample(PROMPTS, 2, seed=3, first=10)
    alone = sampler.sample(PROMPTS[2:], 2, seed=3, first=12)
    assert alone.completions == together.completions[4:]
    assert sampler.sample(PROMPTS[2:], 2, seed=3, first=13).completions != alone.completions
    assert sampler.sample(PROMPTS[2:], 2, seed=4, first=12).completions != alone.completions


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8), (2, 2, 1, 2)])
def test_weights_on_any_mesh_are_sampled_from(params, shape) -> None:
    mesh = make_mesh(MeshConfig(*shape))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings_of(mesh, MODEL.shapes(), MODEL.axes))
        sampler = sampler_of(placed)
        found = sampler.sample(PROMPTS, 2, seed=0, first=0)
        agreement(trained_logprobs(placed, found, mesh), found.logprobs, found.mask).checked(1e-4)


@pytest.mark.slow
def test_a_policy_that_is_broken_ends_the_run(params) -> None:
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(CannotGoOnError, match="rollout: the model's logits are not numbers"):
        sampler_of(broken).sample(PROMPTS, 1, seed=0, first=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 50}, "rollout.top_k: 50 must be 0: it changes the distribution that is sampled from"),
        ({"top_p": 0.9}, "rollout.top_p: 0.9 must be 1.0"),
        ({"min_p": 0.1}, "rollout.min_p: 0.1 must be 0.0"),
        ({"repetition_penalty": 1.1}, "rollout.repetition_penalty: 1.1 must be 1.0"),
        ({"presence_penalty": 0.1}, "rollout.presence_penalty: 0.1 must be 0.0"),
        ({"frequency_penalty": 0.1}, "rollout.frequency_penalty: 0.1 must be 0.0"),
        ({"temperature": 0.0}, "rollout.temperature: 0.0 must be above 0"),
    ],
)
def test_what_makes_the_distributions_differ_is_refused_by_name(setting, message) -> None:
    with pytest.raises(UserError, match=message):
        Sampler(MODEL, {}, dataclasses.replace(SAMPLING, **setting), slots=1, length=64, stop_ids=())


def test_completions_are_laid_into_rows_and_found_again() -> None:
    prompts, completions = [[5, 6], [7], [8, 9, 10]], [[1, 2, 3], [4], [11, 12]]
    rows = laid_rows(prompts, completions, 4, 9, multiple=2)
    assert len(rows) == 2
    fields = rows.fields
    values = np.array([[1.0, 2, 3, 9], [4, 9, 9, 9], [5, 6, 9, 9]], np.float32)
    laid = rows.laid(values)
    for prompt, completion, own in zip(prompts, completions, values, strict=True):
        ids = np.array([*prompt, *completion])
        row, start = next(
            (row, start)
            for row in range(2)
            for start in range(9)
            if fields["tokens"][row, start : start + len(ids) - 1].tolist() == ids[:-1].tolist()
        )
        place = slice(start, start + len(ids) - 1)
        assert fields["targets"][row, place].tolist() == ids[1:].tolist()
        assert fields["positions"][row, place].tolist() == list(range(len(ids) - 1))
        assert len(set(fields["segment_ids"][row, place])) == 1 and fields["segment_ids"][row, start] > 0
        weights = [0] * (len(prompt) - 1) + [1] * len(completion)
        assert fields["loss_weights"][row, place].tolist() == weights
        assert laid[row, place].tolist() == [0] * (len(prompt) - 1) + own[: len(completion)].tolist()
    assert fields["loss_weights"].sum() == np.count_nonzero(laid) == 6
    assert rows.gathered(laid).tolist() == [[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 0, 0]]
    with pytest.raises(UserError, match="row_length: 3 is less than the 4 tokens of a prompt with its completion"):
        laid_rows(prompts, completions, 4, 3)


def test_the_end_of_a_completion_is_read_where_a_value_behind_it_is_wanted() -> None:
    rows = laid_rows([[5, 6], [7]], [[1, 2], [3, 4]], 3, 8, reads_end=np.array([True, False]))
    tokens = rows.fields["tokens"]
    places = np.arange(tokens.size, dtype=np.float32).reshape(tokens.shape)
    first = np.flatnonzero(tokens.reshape(-1) == 5)[0]
    assert tokens.reshape(-1)[first : first + 4].tolist() == [5, 6, 1, 2]
    assert rows.gathered(places)[0].tolist() == [first + 1, first + 2, first + 3]
    assert rows.gathered(places)[1, 2] == 0 and rows.fields["loss_weights"].sum() == 4
