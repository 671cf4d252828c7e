"""`ppo` through its real command: on policy at first, four roles on one base, what is rewarded is learned, and an
interruption changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import call, checkpoint, copy_until, metrics
from made_once import made_once
from sweeps import some
from test_grpo import assert_goes_on_from_the_middle, assert_survives, untimed, written
from test_reward import Rewarded, preferences, rewarded

__all__ = ["preferences", "rewarded"]  # fixtures

STEPS = 4


def arguments_of(model: Path, folder: Path, **changes: object) -> list[object]:
    settings = {
        "model": model,
        "method": "lora",
        "lora.rank": 4,
        "lora.target_modules": "[all-linear]",
        "row_length": 32,
        "rollout_epochs": 2,
        "minibatches": 2,
        "data.source": folder / "prompts.jsonl",
        "data.template": "plain",
        "data.validation_examples": 20,
        "rewards.functions": f"[{folder / 'rewards.py'}:letters]",
        "rewards.weights": "[2]",
        "rewards.missing_end_penalty": 0.01,
        "rewards.normalize": "running",
        "rewards.clip": 5,
        "kl.target": 1,
        "average_decay": 0.2,
        "rollout.max_new_tokens": 8,
        "rollout.temperature": 0.9,
        "rollout.prompts": 64,
        "rollout.slots": 8,
        "critic.peak_learning_rate": 0.003,
        "training.steps": STEPS,
        "training.batch_size": 16,
        "training.peak_learning_rate": 0.02,
        "training.evaluate_every": 2,
        "checkpoints.every": 1,
        "checkpoints.keep_every": 1,
        "tracking.tensorboard": "false",
    } | changes
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="session")
def taught(small_run, rewarded: Rewarded, tmp_path_factory) -> tuple[list[object], Path]:
    """The arguments and the directory of a run that was not interrupted, with a reward model beside a function."""
    model = {"reward_model": rewarded.run_dir, "rewards.model_weight": 0.01}

    def make(folder: Path) -> None:
        line = arguments_of(small_run.run_dir, written(folder), **model)
        assert call("ppo", *line, "--run_dir", folder / "run") == 0

    folder = made_once(tmp_path_factory, "taught_by_ppo", make)
    return arguments_of(small_run.run_dir, folder, **model), folder / "run"


def test_it_begins_on_policy_and_learns_what_is_rewarded(taught) -> None:
    _, run_dir = taught
    first, *_, last = records = metrics(run_dir)
    assert first["updates"] == first["critic_updates"] == 4 and first["sampler_difference_max"] < 1e-4
    for record in records:
        assert record["first_ratio"] == pytest.approx(1, abs=1e-4) and record["first_clip_fraction"] == 0
    assert first["kl"] == first["kl_per_completion"] == 0 and abs(last["kl"]) > 1e-4
    function = f"{run_dir.parent / 'rewards.py'}:letters"
    assert set(first["rewards"]) == {"reward_model", function, "penalties"}
    assert last["rewards"][function] > first["rewards"][function]
    # Before anything is learned it is below its target: the coefficient falls by a fifth of 64 completions in 10,000.
    assert records[1]["kl_coefficient"] == pytest.approx(0.05 * (1 - 0.2 * 64 / 10_000))
    assert first["value_mean"] != 0 and last["skipped_updates"] == last["critic_skipped_updates"] == 0
    verdict = json.loads((run_dir / "verdict.json").read_text())
    assert verdict["count"] == 20 and verdict["figure"] == pytest.approx(last["held_out_reward"])


def test_roles_share_the_base_and_a_checkpoint_is_a_model(taught, capfd) -> None:
    """In a checkpoint there are two adapters and a head, and the policy is opened like any other."""
    _, run_dir = taught
    assert "an adapter over the model that the policy is one over" in (run_dir / "log.txt").read_text()
    leaves = checkpoint(run_dir, STEPS)["leaves"]
    assert set(leaves) == {"adapter", "optimizer", "policy", "critic_adapter", "critic_optimizer"}
    assert all(path.startswith("lora/") for path in leaves["adapter"])
    assert set(leaves["critic_adapter"]) == {*leaves["adapter"], "score/kernel"}
    prompt = ("--prompt", "abc", "--max_new_tokens", 4, "--temperature", 0, "--json")
    assert call("generate", "--model", run_dir, *prompt) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["text"]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(taught, tmp_path) -> None:
    arguments, run_dir = taught
    assert_goes_on_from_the_middle("ppo", arguments, run_dir, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_sigkill_anywhere_changes_nothing(kills, taught, tmp_path) -> None:
    arguments, run_dir = taught
    assert_survives(kills, "ppo", arguments, run_dir, tmp_path)


ROLES: dict[str, dict[str, object]] = {
    "full models, no reward model": {"method": "full", "average_decay": 0},
    "full models, a reward model": {"method": "full", "reward_model": "REWARD", "training.steps": 2},
    "a critic of its own beside a reward model": {"reward_model": "REWARD", "critic.begins": "model"},
    "a reward model of its own": {"reward_model": "EXPORT"},
    "a policy that begins as an adapter": {"model": "ADAPTER"},
    "no reference": {"kl.coefficient": 0, "kl.target": "null"},
    "a critic that learns first": {"critic.warmup_iterations": 1, "kl.estimate": "k3", "rewards.whiten": "true"},
    "text, entropy and a dual clip": {
        "text.source": "CORPUS",
        "text.coefficient": 0.5,
        "entropy_coefficient": 0.01,
        "dual_clip": 3,
    },
    "bfloat16": {"compute.dtype": "bfloat16", "model_dtype": "bfloat16", "reward_model": "REWARD"},
}


@pytest.mark.parametrize("roles", some(ROLES, []))
def test_every_choice_of_roles_learns_and_resumes(roles, small_run, rewarded, taught, tmp_path, capfd) -> None:
    folder, export = written(tmp_path), tmp_path / "exported"
    if "EXPORT" in ROLES[roles].values():
        assert call("convert", "--source", rewarded.run_dir, "--target", export) == 0
    places = {"REWARD": rewarded.run_dir, "EXPORT": export, "CORPUS": small_run.corpus, "ADAPTER": taught[1]}
    changes: dict[str, Any] = {name: places.get(str(value), value) for name, value in ROLES[roles].items()}
    model = changes.pop("model", small_run.run_dir)
    line = arguments_of(model, folder, **{"training.steps": 2} | changes)
    target = tmp_path / "run"
    assert call("ppo", *line, "--run_dir", target) == 0, capfd.readouterr().err
    first, last = metrics(target)
    assert last["skipped_updates"] == last["critic_skipped_updates"] == 0
    known = [record["first_ratio"] for record in (first, last) if "first_ratio" in record]
    assert len(known) == (1 if "learns first" in roles else 2)
    exact = roles != "bfloat16"
    np.testing.assert_allclose(known, 1, atol=1e-4 if exact else 0.05)
    assert abs(first["kl"]) <= (1e-6 if exact else 0.05)
    assert ("text_loss" in last) == ("text" in roles)
    again = copy_until(target, tmp_path / "again", kept=[1])
    assert call("ppo", *line, "--run_dir", again) == 0, capfd.readouterr().err
    assert checkpoint(again, 2)["leaves"] == checkpoint(target, 2)["leaves"] and untimed(again) == untimed(target)
    assert call("generate", "--model", target, "--prompt", "a", "--max_new_tokens", 2) == 0


MISTAKES = {
    "a language model that is to reward": ({"reward_model": "MODEL"}, "is a language model, which gives no score"),
    "a reward model that is not there": ({"reward_model": "nowhere"}, "--reward_model nowhere: no such file"),
    "a filter of what is sampled": ({"rollout.top_p": 0.9}, "rollout.top_p: 0.9 must be 1.0"),
    "rows too short for the end": ({"row_length": 8}, "row_length: 8 is less than"),
}


@pytest.mark.parametrize("mistake", some(MISTAKES, []))
def test_mistakes_are_named_in_one_line(mistake, small_run, tmp_path, capfd) -> None:
    changes, told = MISTAKES[mistake]
    here = {name: small_run.run_dir if value == "MODEL" else value for name, value in changes.items()}
    line = arguments_of(small_run.run_dir, written(tmp_path), **here)
    assert call("ppo", *line, "--run_dir", tmp_path / "run") == 2
    (error,) = [each for each in capfd.readouterr().err.splitlines() if each.startswith("error: ")]
    assert told in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_adapter_is_merged_for_the_run_that_comes_of_it_alone(taught, small_run, tmp_path, capfd) -> None:
    """What is refused leaves nothing; of an attempt that was killed the next one takes nothing."""
    folder, run_dir = written(tmp_path), tmp_path / "run"
    line = ["ppo", *arguments_of(taught[1], folder, **{"training.steps": 1}), "--run_dir", run_dir]
    assert call(*line, "--row_length", 8) == 2 and not run_dir.exists()
    (run_dir / "base").mkdir(parents=True)
    (run_dir / "base" / "mine").touch()
    assert call(*line) == 2 and (run_dir / "base" / "mine").exists()
    shutil.rmtree(run_dir)
    assert call("convert", "--source", small_run.run_dir, "--target", run_dir / "base") == 0
    assert call(*line) == 0
    report = json.loads((run_dir / "base" / "conversion_report.json").read_text())
    assert report["source"] == str(taught[1])
    capfd.readouterr()
    assert call(*line, "--training.steps", 2) == 0  # goes on over the same
    assert call(*line, "--training.steps", 3, "--model", copy_until(taught[1], tmp_path / "other", [STEPS])) == 2
    assert f"base was made from {taught[1]}; give that, or another --run_dir" in capfd.readouterr().err


@pytest.mark.slow
def test_a_reward_model_that_has_changed_is_noticed(taught, rewarded, tmp_path, capfd) -> None:
    arguments, run_dir = taught
    copied = copy_until(run_dir, tmp_path / "run", kept=[1, 2])
    assert call("ppo", *arguments, "--run_dir", copied, "--reward_step", 30) == 2
    assert "--reward_model: is not the one that the run began with" in capfd.readouterr().err


@pytest.mark.slow
def test_nothing_is_left_of_a_dry_run_of_both_models(taught, tmp_path, capfd) -> None:
    arguments, _ = taught
    assert call("ppo", *arguments, "--dry_run", "true", "--run_dir", tmp_path / "run") == 0
    assert capfd.readouterr().out.count("bytes a device") >= 8 and not (tmp_path / "run").exists()
