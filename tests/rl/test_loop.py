"""What an iteration learns from: groups without contrast give way to others, up to a bound, and what is asked is
numbered over the whole run."""

import dataclasses
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.rl import running
from llama_jax.rl.config import GroupRolloutConfig, GrpoConfig, PromptDataConfig, RewardsConfig
from llama_jax.rl.judging import Judge, Judged
from llama_jax.rl.learners.grouped import Batch, learned_tokens, with_contrast
from llama_jax.rl.loop import Clock, Parts, Progress
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.prompts import Prompt, PromptData, arguments_of
from llama_jax.rl.rollouts import Rollouts, Sampler
from llama_jax.training.config import TrainingConfig


def stand_in(kind: type, **what_it_has: Any) -> Any:
    """Something that is taken for one of a kind."""
    made = Mock(spec=kind)
    made.configure_mock(**what_it_has)
    return made


def sums(**settings: Any) -> PromptData:
    config = PromptDataConfig(**{"validation_examples": 40} | settings)
    layout = stand_in(Layout, prompt_ids=lambda turns: [ord(letter) for turn in turns for letter in turn.content])
    return PromptData(config, layout, seed=3, say=lambda line: None)


def test_every_prompt_is_asked_once_an_epoch_and_none_that_is_held_out() -> None:
    data = sums()
    epochs = [data.numbered(5010 * epoch, 5010) for epoch in range(2)]
    asked = [[prompt.asked for prompt in epoch] for epoch in epochs]
    assert sorted(asked[0]) == sorted(asked[1]) and asked[0] != asked[1] and len({*asked[0]}) == 5010
    assert not {*asked[0]} & {prompt.asked for prompt in data.held_out} and len(data.held_out) == 40
    assert [each.asked for each in data.numbered(5000, 20)] == asked[0][5000:] + asked[1][:10]
    first = epochs[0][0]
    a, b = first.asked.removesuffix("=").split("+")
    assert first.fields == {"answer": str(int(a) + int(b))} and first.ids == [ord(each) for each in first.asked]
    # Nor the other way round, and a constant answer is right for less than a hundredth.
    pairs = [frozenset(each.asked.removesuffix("=").split("+")) for each in (*data.training, *data.held_out)]
    assert len({*pairs}) == len(pairs) == 5050
    answers = [prompt.fields["answer"] for prompt in (*data.training, *data.held_out)]
    assert max(map(answers.count, {*answers})) < 0.01 * len(answers)
    assert sums().fingerprint == data.fingerprint != sums(max_prompt_tokens=4).fingerprint


def test_prompts_too_long_are_counted_and_some_must_be_left() -> None:
    data = sums(max_prompt_tokens=4)
    assert (
        data.too_long + len(data.training) + len(data.held_out) == 5050 and "dropped (too long)" in data.description()
    )
    with pytest.raises(UserError, match=r"none of the 5,050 records of sums is left to train on; 5,050 have prompts"):
        sums(max_prompt_tokens=2)


def test_reward_functions_are_told_what_records_have_as_trl_tells_them() -> None:
    turns = [{"role": "user", "content": "b"}]
    prompts = [Prompt([1], "a", {"answer": 1}), Prompt([2], turns, {"level": "x"})]
    assert arguments_of(prompts, ["y", "z"], [[5], [6, 7]], ["answer", "hint", "level"]) == {
        "prompts": ["a", turns],
        "completions": ["y", [{"role": "assistant", "content": "z"}]],
        "completion_ids": [[5], [6, 7]],
        "answer": [1, None],
        "hint": [None, None],  # of other records: a function is always called with the same
        "level": [None, "x"],
    }


def test_the_judge_adds_up_by_weight_and_penalizes_what_is_cut_or_long() -> None:
    config = RewardsConfig(("exact", "last_number"), (1.0, 0.5), missing_end_penalty=0.25, overlong_buffer=2)
    digits = stand_in(Tokenizer, decode=lambda ids: "".join(str(each % 10) for each in ids))
    judge = Judge(config, digits, 4, ["answer"])
    rollouts = Rollouts([[1]] * 3, [[7], [1, 7, 3], [8, 8, 8, 8]], np.zeros((3, 4)), np.array([True, True, False]))
    prompts = [
        Prompt([1], "3+4=", {"answer": "7"}),
        Prompt([1], "a", {"answer": "is 173"}),
        Prompt([1], "a", {"answer": "7"}),
    ]
    each, summed = judge(prompts, rollouts)
    np.testing.assert_allclose(each, [[1, 1, 0], [0, 1, -0.5], [0, 0, -1.25]])
    np.testing.assert_allclose(summed, [1.5, 0.0, -1.25])
    assert judge.names == ("exact", "last_number", "penalties") and judge.problems() == []


@pytest.mark.parametrize(("most", "asked", "left"), [(0, 4, 3), (1, 7, 1), (2, 8, 0), (9, 8, 0)])
def test_groups_without_contrast_give_way_to_others(most: int, asked: int, left: int) -> None:
    """Of prompts 0 to 3 the last has a contrast, of 4 to 6 all but the last, and then 7."""
    drawn: list[tuple[int, int]] = []

    def sample(prompts, count, *, seed, first) -> Rollouts:
        drawn.append((first, len(prompts)))
        ids = [[prompt[0] * 10 + answer] for prompt in prompts for answer in range(count)]
        return Rollouts([[each[0] // 10] for each in ids], ids, np.zeros((len(ids), 1)), np.ones(len(ids), np.bool_))

    def judge(prompts, rollouts) -> Judged:
        numbers = np.array([each[0] for each in rollouts.completions])
        has_contrast = np.isin(numbers // 10, [3, 4, 5, 7])
        rewards = np.where(has_contrast, numbers % 10, 1.0)
        return Judged(rewards[:, None], rewards)

    config = dataclasses.replace(GrpoConfig(), rollout=GroupRolloutConfig(prompts=4, num_generations=2, resampled=most))
    judging = stand_in(Judge, side_effect=judge, names=("own",), problems=list)
    numbered = stand_in(PromptData, numbered=lambda first, count: [Prompt([first + n], "", {}) for n in range(count)])
    parts = Parts(config, numbered, stand_in(Sampler, sample=sample), judging, say=print)
    batch = with_contrast(config, parts, 0, Clock())
    assert (batch.asked, batch.record["groups_without_contrast"]) == (asked, left)
    assert batch.record["resampled_groups"] == asked - 4 and batch.tokens == 2 * asked
    assert batch.record["reward"] == (6 + 1) / 8 and batch.record["reward_zero_deviation"] == 0.75
    kept = {prompt[0] for prompt in batch.rollouts.prompts}
    assert kept == {0: {0, 1, 2, 3}, 1: {3, 4, 5, 6}}.get(most, {3, 4, 5, 7})
    numbers = [ids[0] for ids in batch.rollouts.completions]
    np.testing.assert_array_equal(judge(None, batch.rollouts).summed, batch.judged.summed)
    assert len({*numbers}) == 8 and [number // 10 for number in numbers] == [p[0] for p in batch.rollouts.prompts]


def test_neither_a_completion_without_a_reward_nor_one_that_was_cut_is_learned_from() -> None:
    rollouts = Rollouts([[1]] * 3, [[7], [1, 7], [8, 8]], np.zeros((3, 2)), np.array([True, True, False]))
    rewards = np.array([np.nan, 0.0, 1.0])
    batch = Batch(rollouts, Judged(rewards[:, None], rewards), 3, 5, {})
    config = GrpoConfig()
    np.testing.assert_array_equal(learned_tokens(config, batch), [[False, False], [True, True], [True, True]])
    config = dataclasses.replace(config, learn_truncated=False)
    np.testing.assert_array_equal(learned_tokens(config, batch), [[False, False], [True, True], [False, False]])


def test_a_prompt_that_is_none_is_named(tmp_path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": 5}\n')
    with pytest.raises(
        UserError, match=r"asked.jsonl:1: field 'prompt' is of type number; it must be a text or a list"
    ):
        sums(source=str(tmp_path / "asked.jsonl"), validation_examples=0)


def test_a_run_that_goes_on_says_where_its_learning_rate_has_ended(monkeypatch, capsys) -> None:
    config = PpoConfig(training=TrainingConfig(steps=30, schedule="linear", spike_sigma=0.0), rollout_epochs=2)
    monkeypatch.setattr(running, "begun_schedule", lambda run_dir: None)
    assert running.with_schedule(config).training.schedule_steps == 60 and not capsys.readouterr().out
    monkeypatch.setattr(running, "begun_schedule", lambda run_dir: 40)
    assert running.with_schedule(config).training.schedule_steps == 40
    assert "the learning-rate schedule still ends at update 40" in capsys.readouterr().out


def test_progress_comes_back_from_json() -> None:
    progress = Progress(3, 50, 700, (1.0, None, 0.5))
    assert Progress.from_json(progress.to_json()) == progress
