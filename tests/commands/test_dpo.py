"""`dpo` and `kto` through their real commands: where they begin, what they learn, and what an interruption does."""

import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_runs import call, checkpoint, metrics, run, run_two
from learnable_preferences import WORDS, pair, write
from made_once import made_once
from sweeps import some
from test_restart import finish_though_killed

STEPS = 12
BETA = 0.5


@dataclass(frozen=True)
class Tuned:
    """A run that was not interrupted."""

    command: str
    arguments: list[object]
    run_dir: Path


def records_of(command: str, chosen: random.Random, count: int) -> list[dict[str, object]]:
    """Pairs, or answers by themselves; what is good has a given word in it and is as long as what is not. Each has a
    prompt of its own: what has one that is held out would be left out."""
    pairs = [pair(chosen) | {"prompt": f"say {' '.join(chosen.choices(WORDS, k=6))}"} for _ in range(count)]
    if command == "dpo":
        return pairs
    labels = [("chosen", True), ("rejected", False)]
    return [
        {"prompt": each["prompt"], "completion": each[name], "label": label}
        for each, (name, label) in ((each, chosen.choice(labels)) for each in pairs)
    ]


def arguments_of(model: Path, source: Path, **changes: object) -> list[object]:
    settings = {
        "model": model,
        "epochs": "null",
        "beta": BETA,
        "data.source": source,
        "data.template": "plain",
        "data.sequence_length": 128,
        "data.validation_examples": 24,
        "training.steps": STEPS,
        "training.batch_size": 8,
        "training.peak_learning_rate": 0.01,
        "training.evaluate_every": 4,
        "lora.target_modules": "[all-linear]",
        "samples.held_out": 0,
        "checkpoints.every": 3,
        "tracking.tensorboard": "false",
    } | changes
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="session", params=some(["dpo", "kto"], ["dpo"]))
def tuned(request, small_run, tmp_path_factory) -> Tuned:
    command = request.param

    def make(folder: Path) -> None:
        source = write(folder / "preferences.jsonl", records_of(command, random.Random(0), 120))
        assert call(command, *arguments_of(small_run.run_dir, source), "--run_dir", folder / "run") == 0

    folder = made_once(tmp_path_factory, f"tuned_by_{command}", make)
    return Tuned(command, arguments_of(small_run.run_dir, folder / "preferences.jsonl"), folder / "run")


def test_a_run_begins_as_its_own_reference_and_ends_in_a_verdict(tuned):
    first, *_, last = metrics(tuned.run_dir)
    begins = {"dpo": math.log(2), "kto": 0.5}[tuned.command]
    assert first["loss"] == pytest.approx(begins, abs=2e-6)
    assert first["reward_margin"] == pytest.approx(0, abs=2e-5)
    assert last["validation_loss"] < begins and last["validation_accuracy"] > 0.7
    assert last["reward_margin"] == pytest.approx(last["rewards_chosen"] - last["rewards_rejected"], abs=1e-5)
    verdict = json.loads((tuned.run_dir / "verdict.json").read_text())
    assert verdict["figure"] == last["validation_accuracy"] and verdict["count"] == 24
    assert verdict["baseline"] == last["validation_length_accuracy"]
    log = (tuned.run_dir / "log.txt").read_text()
    assert log.count("under the reference model, once") == 1
    assert f"held out, before training: loss {begins:.4f}" in log


def assert_same_run(expected: Tuned, run_dir: Path) -> None:
    assert metrics(run_dir) == metrics(expected.run_dir)
    assert checkpoint(run_dir, STEPS) == checkpoint(expected.run_dir, STEPS)
    assert (run_dir / "verdict.json").read_text() == (expected.run_dir / "verdict.json").read_text()


@pytest.mark.slow
def test_a_run_that_stops_goes_on_with_the_log_probs_that_it_keeps(tuned, tmp_path):
    """From a checkpoint in the middle, as a killed process leaves it; log-probs that are damaged are found anew."""
    run_dir = shutil.copytree(tuned.run_dir, tmp_path / "run")
    for step in (9, STEPS):
        shutil.rmtree(run_dir / "checkpoints" / str(step))
    kept = run_dir / "reference_logprobs.json"
    record = json.loads(kept.read_text())
    for damaged, told in ((False, 1), (True, 2)):
        if damaged:
            record["sums"][0][0][0] += 1
            kept.write_text(json.dumps(record))
            for step in (9, STEPS):
                shutil.rmtree(run_dir / "checkpoints" / str(step))
        assert call(tuned.command, *tuned.arguments, "--run_dir", run_dir) == 0
        assert (run_dir / "log.txt").read_text().count("under the reference model, once") == told
        assert_same_run(tuned, run_dir)


@pytest.mark.parametrize("kills", some([1, 3], []))
def test_a_run_that_is_killed_is_the_uninterrupted_run(kills, tuned, tmp_path):
    run_dir = tmp_path / "run"
    finish_though_killed(
        kills, tuned.command, *tuned.arguments, run_dir=run_dir, folder=tmp_path, counts=(2, 4), pause=0.2, devices=8
    )
    assert_same_run(tuned, run_dir)


CHANGES = {
    "dpo": {"data.pairs_per_row": 2, "sft_weight": 0.2},
    "simpo": {"loss": "simpo", "beta": 2, "target_margin": 1},
    "full": {"method": "full", "loss": "robust", "label_smoothing": 0.1},
    # With a smaller beta the loss of IPO is 25, of which 2e-6 is a float32 rounding.
    "prompts apart": {"share_prompts": "false", "loss": "ipo_tokens", "beta": 1},
    "kto": {},
}


@pytest.mark.parametrize("sizes", some([(2, 2, 1, 2), (1, 2, 2, 2)], []))
@pytest.mark.parametrize("name", some(CHANGES, []))
def test_meshes_and_microbatches_give_the_same_losses(sizes, name, small_run, tmp_path):
    command = "kto" if name == "kto" else "dpo"
    source = write(tmp_path / "preferences.jsonl", records_of(command, random.Random(0), 120))
    # Small steps, so that rounding stays rounding; microbatches draw the dropout anew.
    changes = {"training.batch_size": 16, "training.peak_learning_rate": 1e-4, "lora.dropout": 0, "beta": 0.1}
    changes |= CHANGES[name]
    arguments = arguments_of(small_run.run_dir, source, **changes)
    assert run(command, *arguments, "--run_dir", tmp_path / "one", folder=tmp_path).code == 0
    axes = zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True)
    parallel = [part for axis, size in axes for part in (f"--mesh.{axis}", size)]
    line = (command, *arguments, "--training.microbatches", 2, *parallel, "--run_dir", tmp_path / "mesh")
    assert call(*line) == 0
    assert_same_losses(tmp_path / "mesh", tmp_path / "one")


def assert_same_losses(found: Path, expected: Path) -> None:
    for one, other in zip(metrics(found), metrics(expected), strict=True):
        assert one["batch_hash"] == other["batch_hash"]
        for name in ("loss", "validation_loss"):
            assert one.get(name) == pytest.approx(other.get(name), abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dpo", "kto"])
def test_two_processes_give_the_losses_of_one(command, small_run, tmp_path):
    source = write(tmp_path / "preferences.jsonl", records_of(command, random.Random(0), 120))
    arguments = arguments_of(small_run.run_dir, source, **{"training.peak_learning_rate": 1e-4})
    for result in run_two(command, *arguments, "--run_dir", tmp_path / "two", folder=tmp_path):
        assert result.code == 0, result
    assert run(command, *arguments, "--run_dir", tmp_path / "one", folder=tmp_path).code == 0
    assert_same_losses(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("command", "method", "seed"),
    [
        pytest.param(command, method, seed, marks=pytest.mark.slow)
        for command in ("dpo", "kto")
        for method in ("full", "lora")
        for seed in range(3)
    ],
)
def test_a_rule_is_learned(command, method, seed, small_run, tmp_path):
    """What is good has a given word in it, and is as long as what is not."""
    source = write(tmp_path / "preferences.jsonl", records_of(command, random.Random(seed), 600))
    rate = {"full": 1e-3, "lora": 1e-2}[method]
    changes = {"training.batch_size": 16, "training.steps": 90, "training.evaluate_every": 90, "checkpoints.every": 90}
    changes |= {"method": method, "seed": seed, "training.peak_learning_rate": rate}
    changes |= {"data.validation_examples": 120}
    line = (command, *arguments_of(small_run.run_dir, source, **changes), "--run_dir", tmp_path / "run")
    assert call(*line) == 0
    last = metrics(tmp_path / "run")[-1]
    assert last["validation_accuracy"] > 0.95
    assert abs(last["validation_length_accuracy"] - 0.5) < 0.15
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["believed"]
