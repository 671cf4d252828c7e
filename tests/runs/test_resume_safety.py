"""Nothing is removed and nothing written before a run is known to go on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath
from sweeps import some
from toy_runs import ROWS, STEPS, Counted, KilledError, Toy, assert_same, damage, killed_before, steps

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import pending_marker
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, verifies
from llama_jax.core.errors import UserError
from llama_jax.training.config import TrainingConfig

SCRIPT = Path(__file__).with_name("resume_until_killed.py")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("uninterrupted"))
    assert toy.train()
    return toy


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Toy:
    """A run of 8 steps that ended before the last, with checkpoints at 3 and 6."""
    toy = Toy(tmp_path_factory.mktemp("interrupted"))
    with pytest.raises(KilledError):
        toy.train(killed_before(8))
    return toy


@pytest.fixture
def toy(interrupted, tmp_path) -> Toy:
    shutil.copytree(interrupted.path, tmp_path / "run")
    return Toy(tmp_path / "run")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unreadable() -> Counted:
    """Data of which a command learns at the first batch that it may not use them."""

    def refuse(number: int) -> None:
        raise UserError("data.max_bad_fraction: too many")

    return Counted(before_batch=refuse)


def of_steps(count: int, **changes: object) -> TrainingConfig:
    values = {"steps": count, "batch_size": ROWS, "warmup_steps": 2, "evaluate_every": 2, "schedule_steps": 8}
    return TrainingConfig(**(values | changes))  # pyright: ignore[reportArgumentType]


REFUSALS: dict[str, tuple[Callable[[Toy], object], str]] = {
    "other data": (lambda toy: toy.train(Counted("other"), resume=3), "the documents or the tokenizer are not those"),
    "too few steps": (lambda toy: toy.train(resume=3, training=of_steps(2)), "training.steps: 2, but .* at step 3"),
    "data that turn out to be bad": (lambda toy: toy.train(unreadable(), resume=3), "too many"),
    "bad data and the newest step": (lambda toy: toy.train(unreadable()), "too many"),
    "another setting": (
        lambda toy: toy.train(resume=3, training=of_steps(8, peak_learning_rate=1.0)),
        "training.peak_learning_rate is",
    ),
    "no such step": (lambda toy: toy.train(resume=4), "no checkpoint step 4 in .*; there are: 3, 6"),
    "never": (lambda toy: toy.train(resume="never"), "--resume never: .* is a run with progress"),
    "other data and the newest step": (lambda toy: toy.train(Counted("other")), "the documents or the tokenizer"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_leaves_the_directory_bit_for_bit(toy, name):
    # What an interrupted save left behind is in no one's way, either.
    (toy.path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
    pending_marker(epath.Path(toy.path / "checkpoints"), 7).touch()
    before = content_of(toy.path)
    refused, message = REFUSALS[name]
    with pytest.raises(UserError, match=message):
        refused(toy)
    assert content_of(toy.path) == before
    assert (toy.path / "checkpoints" / "7.orbax-checkpoint-tmp").exists()


def test_a_step_that_does_not_verify_costs_no_other(toy):
    damage(toy, 3)
    before = content_of(toy.path)
    with pytest.raises(CheckpointDamagedError, match=r"no checkpoint in .* verifies \(step 3: "):
        toy.train(resume=3)
    assert content_of(toy.path) == before


def test_a_run_that_is_where_it_was_to_go_is_left_as_it_is(toy, capsys):
    """A later checkpoint, too: there is nothing to be made in its place."""
    before = content_of(toy.path)
    assert not toy.train(resume=3, training=of_steps(3))
    assert "is already at step 3" in capsys.readouterr().out
    assert content_of(toy.path) == before


def test_what_was_best_after_the_step_that_is_resumed_from_is_not_what_later_ones_are_compared_with(tmp_path):
    kept = CheckpointConfig(every=8, keep_every=1, keep_best=True)
    toy = Toy(tmp_path, checkpoints=kept, losses={2: 0.9, 4: 0.1, 6: 0.5, 8: 0.6})
    assert toy.train()
    assert steps(toy) == [2, 4, 8]
    toy.losses = {4: 0.8, 6: 0.3, 8: 0.6}
    assert toy.train(resume=2)
    assert steps(toy) == [2, 4, 6, 8]


def resume_and_kill(run: Path, folder: Path, *numbers: int) -> None:
    paths = os.pathsep.join(map(str, (SCRIPT.parent, SCRIPT.parents[2])))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, SCRIPT, run, folder, *map(str, numbers)]
    subprocess.run(command, check=True, timeout=60 + 20 * len(numbers), env=environment)


def check_killed(path: Path, before: Toy, uninterrupted: Toy) -> str:
    """Check what a killed resumption left of a run; returns how far it came."""
    toy, folder = Toy(path), epath.Path(path / "checkpoints")
    assert verifies(folder / "3")
    goes_on = "going on from step 3" in (path / "log.txt").read_text()
    if not goes_on:
        assert verifies(folder / "6")
        assert (path / "metrics.jsonl").read_bytes() == (before.path / "metrics.jsonl").read_bytes()
    saved = steps(toy)
    assert toy.train() == (STEPS not in saved)
    assert_same(toy, uninterrupted)
    return f"{'goes on' if goes_on else 'not yet'}, {saved}"


@pytest.mark.parametrize("share", some([number / 50 for number in range(50)], [0.42]))
@pytest.mark.slow
def test_a_kill_around_a_resumption_loses_no_checkpoint(interrupted, uninterrupted, operations, tmp_path, share):
    number = 1 + round(share * operations)
    resume_and_kill(interrupted.path, tmp_path, number)
    assert not (tmp_path / f"{number}.operations").exists()
    came = check_killed(tmp_path / str(number), interrupted, uninterrupted)
    print(f"killed at operation {number} of {operations}: {came}")


@pytest.fixture(scope="module")
def operations(interrupted, tmp_path_factory) -> int:
    """On the files of a run that is resumed and ends."""
    folder = tmp_path_factory.mktemp("resumed")
    resume_and_kill(interrupted.path, folder, 0)
    return int((folder / "0.operations").read_text())
