"""`reward` through its real command: what it learns, what it keeps, and what an interruption does to it."""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_runs import checkpoint, ended, metrics, run, started
from learnable_preferences import pair, write
from made_once import made_once
from sweeps import some
from test_restart import wait_for_steps

STEPS = 12


@dataclass(frozen=True)
class Rewarded:
    """A run of `reward` that was not interrupted."""

    arguments: list[object]
    run_dir: Path


@pytest.fixture(scope="session")
def preferences(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        chosen = random.Random(0)
        write(folder / "pairs.jsonl", [pair(chosen) for _ in range(120)])

    return made_once(tmp_path_factory, "preferences", make) / "pairs.jsonl"


def arguments_of(model: Path, source: Path, **changes: object) -> list[object]:
    settings = {
        "model": model,
        "epochs": "null",
        "data.source": source,
        "data.template": "plain",
        "data.sequence_length": 128,
        "data.validation_examples": 24,
        "training.steps": STEPS,
        "training.batch_size": 8,
        "training.peak_learning_rate": 0.01,
        "training.evaluate_every": 4,
        "lora.target_modules": "[all-linear]",
        "checkpoints.every": 3,
        "tracking.tensorboard": "false",
    } | changes
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="session")
def rewarded(small_run, preferences, tmp_path_factory) -> Rewarded:
    arguments = arguments_of(small_run.run_dir, preferences)

    def make(folder: Path) -> None:
        result = run("reward", *arguments, "--run_dir", folder / "run", folder=folder)
        assert result.code == 0, result

    return Rewarded(arguments, made_once(tmp_path_factory, "rewarded", make) / "run")


def test_a_run_leaves_adapter_head_scale_picture_and_verdict(rewarded):
    leaves = checkpoint(rewarded.run_dir, STEPS)["leaves"]
    assert set(leaves) == {"adapter", "optimizer"} and "score/kernel" in leaves["adapter"]
    folder = rewarded.run_dir / "checkpoints" / str(STEPS) / "model"
    assert json.loads((folder / "config.json").read_text())["scalar_head"]
    last = metrics(rewarded.run_dir)[-1]
    scale = json.loads((folder / "reward_normalization.json").read_text())
    assert scale["gain"] * last["reward_mean"] + scale["bias"] == pytest.approx(0, abs=1e-9)
    assert scale["gain"] * last["reward_deviation"] == pytest.approx(1)
    assert (rewarded.run_dir / "scores.png").read_bytes().startswith(b"\x89PNG")
    verdict = json.loads((rewarded.run_dir / "verdict.json").read_text())
    assert verdict["figure"] == last["validation_accuracy"] and verdict["count"] == 24
    assert verdict["baseline"] == last["validation_length_accuracy"]


def assert_same_run(expected: Rewarded, run_dir: Path) -> None:
    assert metrics(run_dir) == metrics(expected.run_dir)
    assert checkpoint(run_dir, STEPS) == checkpoint(expected.run_dir, STEPS)
    for name in ("verdict.json", f"checkpoints/{STEPS}/model/reward_normalization.json"):
        assert (run_dir / name).read_text() == (expected.run_dir / name).read_text()


@pytest.mark.parametrize("kills", some([1, 3], []))
def test_a_run_that_is_killed_is_the_uninterrupted_run(kills, rewarded, tmp_path):
    chance, output, run_dir = random.Random(kills), tmp_path / "printed", tmp_path / "run"
    line = ("reward", *rewarded.arguments, "--run_dir", run_dir)
    for _ in range(kills):
        with started(*line, output=output) as process:
            if wait_for_steps(run_dir, output, process, count=chance.randint(2, 4)):
                time.sleep(chance.uniform(0, 0.2))
            process.kill()
            assert ended(process, output).code in (0, -signal.SIGKILL)
    result = run(*line, folder=tmp_path)
    assert result.code == 0, result
    assert_same_run(rewarded, run_dir)
