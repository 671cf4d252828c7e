"""`grpo` through its real command: on policy at first, what is rewarded is learned, and an interruption changes
nothing."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import TIMING, call, checkpoint, copy_until, metrics, run
from made_once import made_once
from sweeps import some
from test_restart import finish_though_killed

STEPS = 4
REWARDS = '''
def letters(completions, completion_ids, wanted, **rest):
    """The share of the characters that are the wanted one; no reward where the record wants none."""
    return [None if w is None else text.count(w) / max(len(text), 1) for text, w in zip(completions, wanted)]

def short(completion_ids, **rest):
    return [-len(ids) for ids in completion_ids]

def raises(prompts, **rest):
    return [1 / 0 for _ in prompts]

def few(prompts, **rest):
    return [1.0]

def constant(prompts, **rest):
    return [1.0] * len(prompts)
'''


def arguments_of(model: Path, folder: Path, **changes: object) -> list[object]:
    settings = {
        "model": model,
        "method": "lora",
        "lora.rank": 4,
        "lora.target_modules": "[all-linear]",
        "beta": 0.01,
        "row_length": 32,
        "minibatches": 2,
        "data.source": folder / "prompts.jsonl",
        "data.template": "plain",
        "data.validation_examples": 20,
        "rewards.functions": f"[{folder / 'rewards.py'}:letters,{folder / 'rewards.py'}:short]",
        "rewards.weights": "[1,0.001]",
        "rewards.missing_end_penalty": 0.01,
        "rollout.max_new_tokens": 8,
        "rollout.prompts": 8,
        "rollout.num_generations": 4,
        "rollout.resampled": 1,
        "rollout.slots": 8,
        "training.steps": STEPS,
        "training.batch_size": 16,
        "training.peak_learning_rate": 0.02,
        "training.evaluate_every": 2,
        "checkpoints.every": 1,
        "checkpoints.keep_every": 1,
        "tracking.tensorboard": "false",
    } | changes
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def written(folder: Path) -> Path:
    (folder / "rewards.py").write_text(REWARDS)
    chosen = random.Random(0)
    records = [
        {"prompt": "".join(chosen.choices("abcdef", k=3)), "wanted": "e", "completion": "not given"} for _ in range(60)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="session")
def learned(small_run, tmp_path_factory) -> tuple[list[object], Path]:
    """The arguments and the directory of a run that was not interrupted."""

    def make(folder: Path) -> None:
        line = arguments_of(small_run.run_dir, written(folder))
        assert call("grpo", *line, "--run_dir", folder / "run") == 0

    folder = made_once(tmp_path_factory, "learned_by_grpo", make)
    return arguments_of(small_run.run_dir, folder), folder / "run"


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    phases = ("layout", "generation", "scoring", "update")
    times = TIMING | {f"{phase}_{what}" for phase in phases for what in ("seconds", "tokens_per_second")}
    return [{name: value for name, value in each.items() if name not in times} for each in metrics(run_dir)]


def assert_same_run(expected: Path, run_dir: Path) -> None:
    assert untimed(run_dir) == untimed(expected)
    assert checkpoint(run_dir, STEPS) == checkpoint(expected, STEPS)
    assert (run_dir / "verdict.json").read_text() == (expected / "verdict.json").read_text()


def assert_goes_on_from_the_middle(command: str, arguments: list[object], run_dir: Path, folder: Path) -> None:
    copied = copy_until(run_dir, folder / "run", kept=[1, 2])
    (copied / "verdict.json").unlink()
    assert call(command, *arguments, "--run_dir", copied) == 0
    assert "resuming from step 2" in (copied / "log.txt").read_text()
    assert_same_run(run_dir, copied)


def assert_survives(kills: int, command: str, arguments: list[object], run_dir: Path, folder: Path) -> None:
    target = folder / "run"
    finish_though_killed(kills, command, *arguments, run_dir=target, folder=folder, counts=(1, 3), pause=1, devices=8)
    assert_same_run(run_dir, target)


def test_it_begins_on_policy_learns_what_is_rewarded_and_ends_in_a_verdict(learned) -> None:
    _, run_dir = learned
    first, *_, last = records = metrics(run_dir)
    assert first["updates"] == 2 and first["sampler_difference_max"] < 1e-4
    assert first["importance_weight_min"] == pytest.approx(1, abs=1e-3)
    assert last["rewards"][_letters(run_dir)] > first["rewards"][_letters(run_dir)]
    assert set(first["rewards"]) == {_letters(run_dir), _letters(run_dir).replace("letters", "short"), "penalties"}
    position = checkpoint(run_dir, STEPS)["positions"]["position-00000-of-00001.json"]
    asked = 8 * STEPS + sum(record["resampled_groups"] for record in records)
    assert (position["iteration"], position["prompts"], len(position["before"])) == (STEPS, asked, 20)
    timed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][-1]
    spent = sum(timed[f"{phase}_seconds"] for phase in ("layout", "generation", "scoring", "update"))
    assert 0 < spent <= timed["step_seconds"]
    verdict = json.loads((run_dir / "verdict.json").read_text())
    assert verdict["count"] == 20 and verdict["figure"] == pytest.approx(last["held_out_reward"])
    assert verdict["baseline"] == pytest.approx(np.mean(position["before"]), abs=1e-6)
    assert verdict["figure"] > verdict["baseline"] + 0.1 and verdict["believed"]


def _letters(run_dir: Path) -> str:
    return f"{run_dir.parent / 'rewards.py'}:letters"


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(learned, tmp_path) -> None:
    arguments, run_dir = learned
    assert_goes_on_from_the_middle("grpo", arguments, run_dir, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_sigkill_anywhere_changes_nothing(kills, learned, tmp_path) -> None:
    arguments, run_dir = learned
    assert_survives(kills, "grpo", arguments, run_dir, tmp_path)


@pytest.mark.parametrize("loss", some(["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"], []))
def test_every_loss_makes_its_updates(loss, learned, small_run, tmp_path) -> None:
    """With all parameters, and a reward for which groups without contrast are replaced in vain."""
    folder = written(tmp_path)
    changes = {"loss": loss, "method": "full", "beta": 0, "training.steps": 1, "rollout_epochs": 2}
    changes |= {"rewards.functions": f"[{folder / 'rewards.py'}:constant]", "rewards.weights": "[1]"}
    changes["rewards.missing_end_penalty"] = 0
    assert call("grpo", *arguments_of(small_run.run_dir, folder, **changes), "--run_dir", tmp_path / "run") == 0
    (record,) = metrics(tmp_path / "run")
    assert record["updates"] == 4 and "kl" not in record
    assert (record["resampled_groups"], record["groups_without_contrast"]) == (8, 8)


MISTAKES = {
    "a filter of what is sampled": ({"rollout.top_k": 5}, "rollout.top_k: 5 must be 0"),
    "nothing drawn": ({"rollout.temperature": 0}, "rollout.temperature: 0.0 must be above 0"),
    "a loss that spikes": ({"training.spike_sigma": 6}, "training.spike_sigma: 6.0 must be 0"),
    "dropout": ({"lora.dropout": 0.1}, "lora.dropout: 0.1 must be 0"),
    "a reference of all parameters": ({"method": "full"}, "--beta 0.01: is for method lora"),
    "groups of one": ({"rollout.num_generations": 1}, "rollout.num_generations: 1 must be at least 2"),
    "weights of other functions": ({"rewards.weights": "[1]"}, "rewards.weights: 1 weights for 2 functions"),
    "a clip of another loss": ({"loss": "cispo", "clip_low": 0.1}, "--clip_low 0.1: --loss cispo bounds"),
    "parts that do not divide": ({"minibatches": 3}, "minibatches: 32 completions are not divisible by 3"),
    "rows beyond the context": ({"row_length": 1024}, "row_length: 1024 exceeds the model's context, 512"),
    "rows too few": ({"training.batch_size": 8, "row_length": 16}, "training.batch_size: 8 rows of 16 tokens may not"),
    "no such function": (
        {"rewards.functions": "[best]", "rewards.weights": "[]"},
        "'best' is neither FILE.py:NAME nor",
    ),
    "a field that no record has": (
        {"rewards.functions": "[exact]", "rewards.weights": "[]"},
        "rewards.functions: exact: missing a required argument: 'answer'; it is called with prompts,",
    ),
    "a function that raises": (
        {"rewards.functions": "[FOLDER/rewards.py:raises]", "rewards.weights": "[]"},
        "rewards.py:raises: line 10: ZeroDivisionError",
    ),
    "a function of too few": (
        {"rewards.functions": "[FOLDER/rewards.py:few]", "rewards.weights": "[]"},
        "gives 1 rewards for 20 completions",
    ),
    "a record without a prompt": ({"data.source": "FOLDER/asked.jsonl"}, "has no field 'prompt' or 'messages'"),
}


@pytest.mark.parametrize("mistake", some(MISTAKES, ["a filter of what is sampled", "a function that raises"]))
def test_mistakes_are_named_in_one_line(mistake, small_run, tmp_path, capfd) -> None:
    changes, told = MISTAKES[mistake]
    folder = written(tmp_path)
    (folder / "asked.jsonl").write_text('{"question": "a"}\n' * 60)
    here = {name: str(value).replace("FOLDER", str(folder)) for name, value in changes.items()}
    code = call("grpo", *arguments_of(small_run.run_dir, folder, **here), "--run_dir", tmp_path / "run")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code in (1, 2) and len(lines) == 1 and told in lines[0], lines
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["grpo", "ppo"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_that_adds_carelessly_learns_to_from_rewards_alone(seed, command, beginner, tmp_path) -> None:
    """The run that the command makes without arguments, with the model that it makes for that: whatever the seed, from
    less than 30 in 100 sums that neither training has seen to more than 80, and nothing is lost again on the way."""
    line = (command, "--config", f"tiny/{command}", "--model", beginner, "--seed", seed, "--run_dir", tmp_path / "run")
    result = run(*line, folder=tmp_path)
    assert result.code == 0, result
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["count"] == 200 and verdict["believed"]
    assert verdict["baseline"] < 0.3 and verdict["figure"] > 0.8, verdict
    records = metrics(tmp_path / "run")
    assert not any(record.get(f"{part}skipped_updates") for record in records for part in ("", "critic_"))
    rewards = [record["reward"] for record in records]
    assert rewards[0] < 0.4 and sum(rewards[-10:]) / 10 > 0.9 * max(rewards)


@pytest.fixture(scope="session")
def beginner(tiny_run, tmp_path_factory) -> Path:
    """What `grpo` begins with where it is given no model."""

    def make(folder: Path) -> None:
        result = run("sft", "--config", "tiny/sums", "--model", tiny_run, "--run_dir", folder / "run", folder=folder)
        assert result.code == 0, result

    return made_once(tmp_path_factory, "model_that_adds_carelessly", make) / "run"


def test_the_prompts_of_a_run_are_shown_with_what_rewards_are_told(small_run, tmp_path, capfd) -> None:
    arguments = arguments_of(small_run.run_dir, written(tmp_path))
    assert call("preview grpo", *arguments, "--examples", 2, "--json") == 0
    *shown, report = capfd.readouterr().out.splitlines()
    told = json.loads(report)
    assert (told["prompts"], told["held_out"], told["too_long"]) == (40, 20, 0)
    for (segment,) in (row["segments"] for row in told["examples_shown"]):
        assert told["length_percentiles"]["1"] <= segment["tokens"] <= told["length_percentiles"]["100"]
    assert [line for line in shown if '{"wanted": "e"}' in line and line.startswith("rewards are told of row 1")]
    assert f"{tmp_path / 'prompts.jsonl'}: 40 prompts to learn from, 20 held out" in shown


@pytest.mark.slow
def test_nothing_is_left_of_a_dry_run(learned, tmp_path, capfd) -> None:
    arguments, _ = learned
    assert call("grpo", *arguments, "--dry_run", "true", "--run_dir", tmp_path / "run") == 0
    assert "bytes a device" in capfd.readouterr().out and not (tmp_path / "run").exists()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
