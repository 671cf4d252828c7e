"""A run whose checkpoints were damaged goes on from one that verifies, or not at all."""

import random
from pathlib import Path

import command_runs
import pytest


def biggest_file(run_dir: Path, step: int, item: str) -> Path:
    files = (run_dir / "checkpoints" / str(step) / item).rglob("*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(1).randrange(len(content))
    content[place] ^= 8
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("item", "damage"),
    [
        ("params", flip),
        ("optimizer", truncate),
        ("data", Path.unlink),
    ],
    ids=["a flipped bit in the parameters", "a truncated optimizer", "a lost data position"],
)
def test_a_run_falls_back_to_the_newest_checkpoint_that_verifies(small_run, tmp_path, item, damage, capfd) -> None:
    run_dir = command_runs.copy_until(small_run.run_dir, tmp_path / "run", [12, 15])
    damage(biggest_file(run_dir, 15, item))
    result = command_runs.run("pretrain", *small_run.arguments, "--run_dir", run_dir, folder=tmp_path)
    assert result.code == 0, result
    assert "checkpoint step 15 does not verify" in result.output
    assert "resuming from step 12" in result.output
    assert command_runs.metrics(run_dir) == command_runs.metrics(small_run.run_dir)
    assert command_runs.checkpoint(run_dir, 30) == command_runs.checkpoint(small_run.run_dir, 30)


def test_a_run_without_a_checkpoint_that_verifies_does_not_start_from_scratch(small_run, tmp_path) -> None:
    run_dir = command_runs.copy_until(small_run.run_dir, tmp_path / "run", [12, 15])
    for step in (12, 15):
        flip(biggest_file(run_dir, step, "optimizer"))
    before = sorted(str(path) for path in (run_dir / "checkpoints").rglob("*"))
    result = command_runs.run("pretrain", *small_run.arguments, "--run_dir", run_dir, folder=tmp_path)
    assert result.code == 1
    assert "compiling" not in result.output
    assert result.errors.startswith("error: ")
    assert len(result.errors.splitlines()) == 1
    assert sorted(str(path) for path in (run_dir / "checkpoints").rglob("*")) == before


def test_evaluation_does_not_look_at_the_optimizer(small_run, tmp_path, capfd) -> None:
    run_dir = command_runs.copy_until(small_run.run_dir, tmp_path / "run", [30])
    flip(biggest_file(run_dir, 30, "optimizer"))
    assert command_runs.call("evaluate", "--model", run_dir) == 0
    assert "step 30" in capfd.readouterr().out
