"""Two runs that the tests of the commands share: a small one on text of its own, and the tiny configuration."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import command_runs
import pytest
from made_once import made_once


@dataclass(frozen=True)
class SmallRun:
    """An uninterrupted run of 30 steps, more than one epoch, on one device, with all its checkpoints."""

    arguments: list[object]
    """All but the run directory."""
    run_dir: Path
    corpus: Path
    tokenizer: Path


SMALL_STEPS, SMALL_SAVE_EVERY = 30, 3


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SmallRun:
    return _small_run_in(made_once(tmp_path_factory, "small_run", _make_small_run))


def _make_small_run(folder: Path) -> None:
    small = _small_run_in(folder)
    chosen = random.Random(0)
    words = ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=chosen.randint(2, 8))) for _ in range(120)]
    texts = [" ".join(chosen.choices(words, k=chosen.randint(8, 40))) for _ in range(40)]
    small.corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = ("--data.source", small.corpus, "--vocab_size", 300, "--output", small.tokenizer)
    assert command_runs.call("tokenizer", *tokenizer) == 0
    keep_all = ("--checkpoints.keep_every", SMALL_SAVE_EVERY)
    result = command_runs.run("pretrain", *small.arguments, *keep_all, "--run_dir", small.run_dir, folder=folder)
    assert result.code == 0, result
    assert command_runs.steps(small.run_dir) == list(range(SMALL_SAVE_EVERY, SMALL_STEPS + 1, SMALL_SAVE_EVERY))


def _small_run_in(folder: Path) -> SmallRun:
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.model"
    settings = {
        "model.size": "tiny",
        "model.num_layers": 1,
        "model.vocab_size": 300,
        "data.source": corpus,
        "data.tokenizer": tokenizer,
        "data.sequence_length": 32,
        "data.streams": 8,
        "data.validation_fraction": 0.05,
        "training.batch_size": 8,
        "training.steps": SMALL_STEPS,
        "training.warmup_steps": 3,
        "training.peak_learning_rate": 0.01,
        "training.evaluate_every": 10,
        "checkpoints.every": SMALL_SAVE_EVERY,
        "tracking.tensorboard": "false",
    }
    arguments: list[object] = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return SmallRun(arguments, folder / "run", corpus, tokenizer)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """Directory of a run of configs/tiny/pretrain.yaml on one device, as it is started by hand."""

    def make(folder: Path) -> None:
        result = command_runs.run("pretrain", "--config", "tiny/pretrain", "--run_dir", folder / "run", folder=folder)
        assert result.code == 0, result
        (folder / "printed").rename(folder / "run" / "printed")

    return made_once(tmp_path_factory, "tiny_run", make) / "run"
