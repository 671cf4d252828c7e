"""`reward` through its real command: what it learns, what it keeps, and what an interruption does to it."""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_runs import call, checkpoint, copy_until, metrics, run, run_two
from learnable_preferences import THANKS, WORDS, answer, pair, write
from made_once import made_once
from sweeps import some
from test_restart import finish_though_killed

STEPS = 40


@dataclass(frozen=True)
class Rewarded:
    """A run of `reward` that was not interrupted."""

    arguments: list[object]
    run_dir: Path


@pytest.fixture(scope="session")
def preferences(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        chosen = random.Random(0)
        write(folder / "pairs.jsonl", [pair(chosen) for _ in range(400)])

    return made_once(tmp_path_factory, "preferences", make) / "pairs.jsonl"


def arguments_of(model: Path, source: Path, **changes: object) -> list[object]:
    settings = {
        "model": model,
        "epochs": "null",
        "data.source": source,
        "data.template": "plain",
        "data.sequence_length": 128,
        "data.validation_examples": 80,
        "training.steps": STEPS,
        "training.batch_size": 8,
        "training.peak_learning_rate": 0.01,
        "training.evaluate_every": 20,
        "lora.target_modules": "[all-linear]",
        "checkpoints.every": 10,
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
    assert verdict["figure"] == last["validation_accuracy"] and verdict["count"] == 80
    assert verdict["baseline"] == last["validation_length_accuracy"]
    assert verdict["believed"] and last["validation_accuracy"] > 0.95


def assert_same_run(expected: Rewarded, run_dir: Path) -> None:
    assert metrics(run_dir) == metrics(expected.run_dir)
    assert checkpoint(run_dir, STEPS) == checkpoint(expected.run_dir, STEPS)
    for name in ("verdict.json", f"checkpoints/{STEPS}/model/reward_normalization.json"):
        assert (run_dir / name).read_text() == (expected.run_dir / name).read_text()


@pytest.mark.parametrize("kills", some([1, 3], []))
def test_a_run_that_is_killed_is_the_uninterrupted_run(kills, rewarded, tmp_path):
    line, run_dir = ("reward", *rewarded.arguments), tmp_path / "run"
    finish_though_killed(kills, *line, run_dir=run_dir, folder=tmp_path, counts=(2, 4), pause=0.2, devices=1)
    assert_same_run(rewarded, run_dir)


@pytest.mark.slow
def test_a_run_goes_on_over_its_own_base_alone(rewarded, small_run, tmp_path, capfd):
    run_dir = copy_until(rewarded.run_dir, tmp_path / "run", [30])
    other = copy_until(small_run.run_dir, tmp_path / "other", [27])
    assert call("reward", *rewarded.arguments, "--run_dir", run_dir, "--model", other) == 2
    assert f"error: --run_dir {run_dir}: belongs to a base other than {other}: " in capfd.readouterr().err


@pytest.mark.slow
def test_a_reward_model_goes_on_with_its_head_and_writes_no_text(small_run, preferences, tmp_path, capfd):
    """Another run that begins with it scores as it does."""
    arguments = arguments_of(small_run.run_dir, preferences, **{"method": "full", "training.steps": 20})
    assert call("reward", *arguments, "--run_dir", tmp_path / "first") == 0
    first = metrics(tmp_path / "first")[-1]
    line = ("reward", *arguments, "--model", tmp_path / "first", "--run_dir", tmp_path / "second")
    capfd.readouterr()
    assert call(*line, "--training.steps", 1, "--training.peak_learning_rate", 1e-9) == 0
    second = metrics(tmp_path / "second")[-1]
    assert second["validation_loss"] == pytest.approx(first["validation_loss"], abs=1e-5)
    assert call("generate", "--model", tmp_path / "first", "--prompt", "say") == 2
    assert "is a reward model" in capfd.readouterr().err


@pytest.mark.slow
def test_the_tiny_config_trains(tiny_run, tmp_path):
    line = ("reward", "--config", "tiny/reward", "--model", tiny_run, "--run_dir", tmp_path / "run")
    result = run(*line, folder=tmp_path)
    assert result.code == 0, result
    assert "before training: held-out accuracy" in result.output and "verdict: held-out accuracy" in result.output
    records = metrics(tmp_path / "run")
    assert len(records) == 20 and records[-1]["loss"] < records[0]["loss"]


def test_the_preview_shows_both_answers_and_what_is_scored(small_run, preferences, capfd):
    arguments = arguments_of(small_run.run_dir, preferences)
    assert call("preview reward", *arguments, "--examples", 1, "--characters", 300, "--json") == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    rows = [json.loads(line) for line in preferences.read_text().splitlines()]
    (asked, _), (chosen, bears_loss) = report["examples_shown"][0]["segments"][0]["pieces"]
    rejected = report["examples_shown"][0]["segments"][1]["pieces"][-1][0]
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    ends = [text.removesuffix("</s>") for text in (chosen, rejected)]
    assert bears_loss and (asked.removeprefix("<s>"), *ends) in texts
    assert report["held_out_examples"] == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--centering", "-1"], "--centering -1.0: must be a number of at least 0"),
        (["--centering", ".nan"], "--centering nan: must be a number of at least 0"),
        (
            ["--data.sequence_length", "1026"],
            "data.max_length: 513 tokens of a prompt with its answer exceed",
        ),
        (["--centering", "1", "--loss", "per_token"], "centering: 1.0 is for the loss bradley_terry, not per_token"),
        (["--method", "full", "--model_dtype", "nf4"], "model_dtype: nf4 is for method lora"),
        (["--training.trainable", "norm"], "training.trainable: is for method full"),
        (["--data.source", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--loss", "regression"], "score"),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)
def test_mistakes_are_named_in_one_line(change, message, small_run, preferences, tmp_path, capfd):
    line = ("reward", *arguments_of(small_run.run_dir, preferences), "--run_dir", tmp_path / "run", *change)
    assert call(*line) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and message in errors[0], errors


@pytest.mark.parametrize("sizes", some([(2, 2, 2), (1, 8, 1)], []))
@pytest.mark.parametrize("loss", some(["bradley_terry", "per_token"], []))
def test_meshes_and_microbatches_give_the_same_losses(sizes, loss, small_run, preferences, tmp_path):
    # Small steps, so that rounding stays rounding; each microbatch has a dropout of its own.
    changes = {
        "loss": loss,
        "lora.dropout": 0,
        "training.peak_learning_rate": 1e-4,
        "training.batch_size": 16,
        "data.pairs_per_row": 2,
    }
    arguments = arguments_of(small_run.run_dir, preferences, **changes)
    assert run("reward", *arguments, "--run_dir", tmp_path / "one", folder=tmp_path).code == 0
    parallel = [
        part for name, size in zip(("data", "fsdp", "tensor"), sizes, strict=True) for part in (f"--mesh.{name}", size)
    ]
    line = ("reward", *arguments, "--training.microbatches", 2, *parallel, "--run_dir", tmp_path / "mesh")
    assert call(*line) == 0
    assert_same_losses(tmp_path / "mesh", tmp_path / "one")


def assert_same_losses(found: Path, expected: Path) -> None:
    for one, other in zip(metrics(found), metrics(expected), strict=True):
        assert one["batch_hash"] == other["batch_hash"]
        for name in ("loss", "validation_loss"):
            assert one.get(name) == pytest.approx(other.get(name), abs=2e-6)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(small_run, preferences, tmp_path):
    arguments = arguments_of(small_run.run_dir, preferences, **{"training.peak_learning_rate": 1e-4, "lora.dropout": 0})
    for result in run_two("reward", *arguments, "--run_dir", tmp_path / "two", folder=tmp_path):
        assert result.code == 0, result
    assert run("reward", *arguments, "--run_dir", tmp_path / "one", folder=tmp_path).code == 0
    assert_same_losses(tmp_path / "two", tmp_path / "one")


def learned(run_dir: Path, *arguments: object) -> dict[str, float]:
    assert call("reward", *arguments, "--run_dir", run_dir) == 0
    return metrics(run_dir)[-1]


WAYS = [*itertools.product(("bradley_terry", "per_token"), ("full", "lora"), range(3))]


@pytest.mark.parametrize("way", some(WAYS, []), ids=lambda way: "_".join(map(str, way)))
def test_a_rule_is_learned(way, small_run, tmp_path):
    """One answer of each pair has a given word in it; their lengths say nothing."""
    loss, method, seed = way
    chosen = random.Random(seed)
    source = write(tmp_path / "pairs.jsonl", [pair(chosen) for _ in range(600)])
    rate = {"full": 3e-3, "lora": 1e-2}[method]
    changes = {"training.batch_size": 16, "training.steps": 90, "training.evaluate_every": 90, "checkpoints.every": 90}
    changes |= {"loss": loss, "method": method, "seed": seed, "training.peak_learning_rate": rate}
    changes |= {"data.validation_examples": 120, "data.sequence_length": 256}
    last = learned(tmp_path / "run", *arguments_of(small_run.run_dir, source, **changes))
    assert last["validation_accuracy"] > 0.95
    assert abs(last["validation_length_accuracy"] - 0.5) < 0.15
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["believed"]


def stuffed_pair(chosen: random.Random) -> dict[str, str]:
    """A good answer, and the same stuffed with thanks."""
    plain = answer(chosen, good=True)
    parts = plain.split()
    for _ in range(6):
        parts.insert(chosen.randint(0, len(parts)), chosen.choice(THANKS))
    return {"prompt": f"say {' '.join(chosen.sample(WORDS, 2))}", "chosen": plain, "rejected": " ".join(parts)}


@pytest.mark.parametrize("seed", some(range(3), []))
def test_thanks_that_say_nothing_are_not_preferred(seed, small_run, tmp_path, capfd):
    """Where politeness has nothing to do with quality, a bad answer stuffed with thanks is not preferred to a good one
    without, and of two good ones the stuffed one is preferred no more than by chance."""
    chosen = random.Random(seed)
    source = write(tmp_path / "pairs.jsonl", [pair(chosen, polite=True) for _ in range(1000)])
    stuffed = [
        {
            "prompt": "say cat sea",
            "chosen": answer(chosen, good=True),
            "rejected": answer(chosen, good=False, thanks=6),
        }
        for _ in range(100)
    ]
    changes = {"training.batch_size": 16, "training.steps": 120, "training.evaluate_every": 120, "seed": seed}
    changes |= {"data.validation_source": write(tmp_path / "stuffed.jsonl", stuffed), "checkpoints.every": 120}
    changes |= {"data.validation_examples": "null", "data.sequence_length": 512}
    last = learned(tmp_path / "run", *arguments_of(small_run.run_dir, source, **changes))
    assert last["validation_accuracy"] > 0.95
    assert last["validation_length_accuracy"] > 0.95  # of the shorter: what a lover of thanks gets wrong every time
    both_good = write(tmp_path / "good.jsonl", [stuffed_pair(chosen) for _ in range(300)])
    line = ("--task", "preference", "--model", tmp_path / "run", "--data", both_good, "--json")
    capfd.readouterr()
    assert call("evaluate", *line) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["documents"] == 300
    # `chosen` is the plain one. What is preferred by chance alone is so in half of the pairs.
    assert found["accuracy"] > 0.5 - 3 * found["accuracy_standard_error"], found
