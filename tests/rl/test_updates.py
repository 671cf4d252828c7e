"""A rollout becomes updates: on policy at first, each completion dealt once an epoch; what is rewarded is learned."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np
import pytest

from llama_jax.checkpoints.opening import OpenParams
from llama_jax.checkpoints.reward_normalization import NORMALIZATION_FILE, RewardNormalization, padding_file
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.model.lora import without_adapter
from llama_jax.objectives import policy
from llama_jax.objectives.divergence import k3
from llama_jax.objectives.value import clipped_value
from llama_jax.rl import aggregation
from llama_jax.rl.correction import agreement, importance_weights
from llama_jax.rl.groups import group_advantages
from llama_jax.rl.learners.reward_model import OpenRewardModel
from llama_jax.rl.rollouts import Rollouts, Sampler
from llama_jax.rl.updates import Experience, Plan, Updates, Valued, logprobs_by, values_by
from llama_jax.runs.methods import all_parameters, low_rank_adapter, with_scalar_head
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Program, make_program

MODEL = language_model(dataclasses.replace(SIZES["tiny"], num_layers=1), ComputeConfig())
# Losses of policies are near 0 and of either sign: only what is not finite is skipped.
TRAINING = TrainingConfig(
    steps=1000, batch_size=8, warmup_steps=1, peak_learning_rate=1e-2, schedule="constant", spike_sigma=0.0
)
LONGEST, TEMPERATURE, KEY = (4, 8), 0.8, jax.random.key(0)
PROMPTS = [[1, 40, 99], [1], [1, 7, 8, 9], [1, 300]]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1), jax.devices()[:1])


def program_of(method, **settings) -> Program:
    objective = policy.clipped_policy(MODEL, policy.clipped(0.2), temperature=TEMPERATURE, **settings)
    return make_program(MODEL, objective, TRAINING, 24, seed=0, partition=method.partition(MODEL))


METHOD = low_rank_adapter(AdapterConfig(rank=2), "float32", TRAINING.peak_learning_rate)


@pytest.fixture(scope="module")
def program(mesh) -> Program:
    with jax.set_mesh(mesh):
        return program_of(METHOD, divergence=policy.Divergence(0.1, k3))


def sampler_of(params) -> Sampler:
    sampling = SamplingConfig(max_new_tokens=LONGEST[1], temperature=TEMPERATURE)
    return Sampler(MODEL, params, sampling, slots=8, length=16, row_counts=(8,), stop_ids=(2, 3, 4, 5))


def updates_of(program, plan) -> Updates:
    return Updates(program, plan, longest=LONGEST, completions=16, seed=0)


def advantages_of(rollouts: Rollouts, rewards: np.ndarray) -> np.ndarray:
    return np.where(rollouts.mask, group_advantages(rewards, 4)[:, None], 0).astype(np.float32)


@pytest.mark.slow
def test_the_first_update_is_on_policy_and_the_reference_is_the_base(mesh, program) -> None:
    with jax.set_mesh(mesh):
        state, frozen = program.begin(METHOD.begin(jax.jit(MODEL.init)(KEY), KEY))
        params = tree.join(state.trainable, frozen)
        sampler = sampler_of(params)
        rollouts = sampler.sample(PROMPTS, 4, seed=0, first=0)
        updates = updates_of(program, Plan(epochs=2, minibatches=2))
        old = logprobs_by(program, TEMPERATURE, params, rollouts)
        reference = logprobs_by(program, TEMPERATURE, without_adapter(params)[0], rollouts)
        assert agreement(old, rollouts.logprobs, rollouts.mask).checked(1e-4).ratio == pytest.approx(1, abs=1e-4)
        weights = importance_weights(old, rollouts.logprobs, rollouts.mask)
        rewards = np.random.default_rng(0).normal(size=16)
        experience = Experience(old, reference, weights, advantages_of(rollouts, rewards))
        state, metrics = updates(state, frozen, rollouts, rollouts.mask, experience, 0)
        params, compiled = tree.join(state.trainable, frozen), sampler.compilations
        sampler.update(params)
        later = sampler.sample(PROMPTS, 4, seed=0, first=0)
        assert agreement(logprobs_by(program, TEMPERATURE, params, later), later.logprobs, later.mask).checked(1e-4)
    assert later.completions != rollouts.completions and sampler.compilations == compiled
    assert len(metrics) == 4 and int(state.updates) == 4
    assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-4) and metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["clip_fraction"] == 0 and metrics[0]["approximate_kl"] < 1e-8
    assert metrics[3]["approximate_kl"] > 1e-6 and metrics[3]["kl"] > 1e-6


def test_each_epoch_deals_every_completion_once_and_the_divergence_stops_it(mesh, program) -> None:
    lengths = [1, 8, 3, 5] * 4
    completions = [[10 + n] * length for n, length in enumerate(lengths)]
    ended = np.arange(16) % 4 != 1
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    rollouts = Rollouts(prompts, completions, np.zeros((16, 8), np.float32), ended)
    numbers = np.where(rollouts.mask, np.arange(16)[:, None] + np.arange(8) / 10, 0).astype(np.float32)
    experience = Experience(numbers, numbers, numbers, numbers)
    with jax.set_mesh(mesh):
        plan = Plan(epochs=2, minibatches=2, aggregation=aggregation.sequence_mean)
        learned = rollouts.mask & ended[:, None]
        batches = list(updates_of(program, plan)._batches(rollouts, learned, experience, 0))
        first, second = batches[:2], batches[2:]
        for epoch in (first, second):
            targets = np.concatenate([np.asarray(b.targets)[np.asarray(b.loss_weights) > 0] for b in epoch])
            expected = [id for ids, end in zip(completions, ended, strict=True) if end for id in ids]
            assert sorted(targets.tolist()) == sorted(expected)
            for batch in epoch:
                here = np.asarray(batch.loss_weights) > 0
                values, ids = np.asarray(batch.advantages), np.asarray(batch.targets)
                np.testing.assert_array_equal(np.floor(values[here]), ids[here] - 10)
                assert float(batch.share_normalizer) == 8 and float(batch.normalizer) == here.sum()
                assert np.asarray(batch.shares).sum() == pytest.approx(len({*ids[here].tolist()}))
        assert set(np.asarray(first[0].targets).ravel()) != set(np.asarray(second[0].targets).ravel())
        assert np.asarray(first[0].tokens).shape == (8, 24)
        state, frozen = program.init(KEY)
        stopping = updates_of(program, plan._replace(most_divergence=0.0))
        assert len(stopping(state, frozen, rollouts, learned, experience, 0)[1]) == 1


def test_rows_that_may_not_do_are_refused(program) -> None:
    with pytest.raises(UserError, match="minibatches: 16 completions are not divisible by 3"):
        updates_of(program, Plan(minibatches=3))
    updates = functools.partial(Updates, program, Plan(), seed=0)
    with pytest.raises(UserError, match=r"training.batch_size: 8 rows of 24 tokens may not hold the 17 .* 9 rows do"):
        updates(longest=LONGEST, completions=17)
    with pytest.raises(UserError, match="row_length: 24 is less than the 29 tokens"):
        updates(longest=(20, 10), completions=8)


def test_a_reward_model_whose_padding_ends_completions_is_read_before_it(mesh) -> None:
    """As one of transformers whose padding is its end token: the score is that of the text without it."""
    end, files = 2, {**padding_file(2), NORMALIZATION_FILE: RewardNormalization(2.0, 1.0).to_json()}
    prompts, completions = [[1, 40], [1, 40], [1, end], [end]], [[7, end, 8, end, end], [7, end, 8], [end], [end, end]]
    read = [([1, 40], [7, end, 8])] * 2 + [([1], []), ([end], [])]

    def told(pairs: Iterable[tuple[list[int], list[int]]]) -> Rollouts:
        asked, said = map(list, zip(*pairs, strict=True))
        return Rollouts(asked, said, np.zeros((len(asked), 8), np.float32), np.ones(len(asked), np.bool_))

    with jax.set_mesh(mesh):
        model = language_model(dataclasses.replace(MODEL.config, scalar_head=True), ComputeConfig())
        opened = OpenParams(model, jax.jit(model.init)(KEY), files, "here", None)
        reward = OpenRewardModel.of(opened, "here")
        at_ends = dataclasses.replace(reward, padding=None)
        rollouts = told(zip(prompts, completions, strict=True))
        scores, expected = reward.scores(8, 24, rollouts), at_ends.scores(8, 24, told(read))
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        difference = np.abs(scores - at_ends.scores(8, 24, rollouts))
    assert difference[0] > 1e-3 and difference[2] > 1e-3 and difference[1] < 1e-5


@pytest.mark.slow
def test_what_is_rewarded_is_learned(mesh) -> None:
    """The share of tokens in an eighth of the vocabulary, from an eighth to nearly all, with four epochs a rollout."""
    with jax.set_mesh(mesh):
        program = program_of(all_parameters())
        state, frozen = program.init(KEY)
        sampler, updates = sampler_of(state.trainable), updates_of(program, Plan(epochs=4, minibatches=2))
        rewards = []
        for number in range(40):
            sampler.update(state.trainable)
            rollouts = sampler.sample(PROMPTS, 4, seed=0, first=4 * number)
            old = logprobs_by(program, TEMPERATURE, state.trainable, rollouts)
            agreement(old, rollouts.logprobs, rollouts.mask).checked()
            reward = np.array([np.mean(np.array(ids) % 8 == 3) for ids in rollouts.completions])
            weights = importance_weights(old, rollouts.logprobs, rollouts.mask)
            experience = Experience(old, np.zeros_like(old), weights, advantages_of(rollouts, reward))
            state, metrics = updates(state, frozen, rollouts, rollouts.mask, experience, number)
            assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-4) and metrics[0]["clip_fraction"] == 0
            rewards.append(reward.mean())
    assert np.mean(rewards[:3]) < 0.3 and np.mean(rewards[-5:]) > 0.8, rewards
    assert metrics[-1]["skipped_updates"] == 0


@pytest.mark.slow
def test_updates_of_a_policy_and_a_critic_are_the_same_on_another_mesh() -> None:
    """From the same parameters and the same rollout, on 8 devices and on 4."""
    lengths = np.random.default_rng(0).integers(1, 9, size=16)
    completions = [np.random.default_rng(n).integers(6, 300, size=length).tolist() for n, length in enumerate(lengths)]
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    rollouts = Rollouts(prompts, completions, np.zeros((16, 8), np.float32), np.ones(16, np.bool_))
    told = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    critic = with_scalar_head(METHOD)
    config = critic.architecture(MODEL.config)
    found = []
    for devices in (8, 4):
        with jax.set_mesh(make_mesh(MeshConfig(1, devices), jax.devices()[:devices])):
            scoring = language_model(config, ComputeConfig())
            policy_program = program_of(METHOD)
            critic_program = make_program(
                scoring, clipped_value(scoring), TRAINING, 24, seed=0, partition=critic.partition(scoring)
            )
            policy_state, policy_frozen = policy_program.init(KEY)
            old = logprobs_by(policy_program, TEMPERATURE, tree.join(policy_state.trainable, policy_frozen), rollouts)
            critic_state, critic_frozen = critic_program.init(KEY)
            values = values_by(critic_program, tree.join(critic_state.trainable, critic_frozen), rollouts)
            known = Experience(old, old, np.ones_like(old), told), Valued(values, values + told)
            trained, _ = updates_of(policy_program, Plan())(
                policy_state, policy_frozen, rollouts, rollouts.mask, known[0], 0
            )
            judged, _ = updates_of(critic_program, Plan(aggregation=None))(
                critic_state, critic_frozen, rollouts, rollouts.mask, known[1], 0
            )
            found.append([old, values, *map(np.asarray, jax.tree.leaves((trained.trainable, judged.trainable)))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert any(np.abs(leaf).max() > 0 for leaf in found[0][2:])
