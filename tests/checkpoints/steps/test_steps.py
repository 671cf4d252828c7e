import json
import shutil
from pathlib import Path

import pytest
from checkpoint_trees import arrays, same, save_steps, targets
from etils import epath

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import (
    VALIDATION,
    acknowledged_steps,
    best_step,
    clean_up,
    delete_after,
    delete_surplus,
    finished_steps,
    remove_step,
)
from llama_jax.checkpoints.steps.restoring import newest, restore
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core.errors import UserError


@pytest.fixture(scope="module")
def seven_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("steps")
    save_steps(directory, *range(10, 80, 10))
    return directory


@pytest.fixture
def steps(seven_steps: Path, tmp_path: Path) -> epath.Path:
    """A directory of steps 10, 20, ... 70."""
    return epath.Path(shutil.copytree(seven_steps, tmp_path / "steps"))


def corrupt(directory: epath.Path, step: int) -> None:
    (directory / str(step) / "model" / "config.json").write_bytes(b'{"layers": 3}')


def surplus(directory: epath.Path, keep_last: int, keep_every: int | None = None) -> list[int]:
    said: list[str] = []
    delete_surplus(directory, CheckpointConfig(keep_last=keep_last, keep_every=keep_every), 70, said.append)
    assert all("was damaged and is removed" in line for line in said)
    return acknowledged_steps(directory)


def test_the_newest_and_the_multiples_are_kept(steps):
    assert surplus(steps, keep_last=2, keep_every=30) == [30, 60, 70]


def test_the_step_of_the_lowest_validation_loss_is_kept(steps):
    for step, loss in ((10, 2.5), (20, 1.5), (30, 1.5), (50, 1.75)):
        (steps / str(step) / "validation").mkdir()
        (steps / str(step) / VALIDATION).write_text(json.dumps({"validation_loss": loss}))
    assert best_step(steps) == 20
    delete_surplus(steps, CheckpointConfig(keep_last=2, keep_best=True), 70, pytest.fail)
    assert acknowledged_steps(steps) == [20, 60, 70]
    assert best_step(steps) == 20


def test_without_an_evaluation_no_step_is_the_best(steps):
    assert best_step(steps) is None


def test_two_that_verify_are_kept_even_if_one_was_asked_for(steps):
    assert surplus(steps, keep_last=1) == [60, 70]


def test_a_step_is_not_deleted_when_the_second_newest_is_corrupt(steps):
    corrupt(steps, 60)
    assert surplus(steps, keep_last=2) == [50, 60, 70]


def test_deleting_waits_for_two_newer_that_verify_however_many_are_corrupt(steps):
    for step in (60, 50, 40, 20):
        corrupt(steps, step)
    assert surplus(steps, keep_last=2) == [30, 40, 50, 60, 70]


def test_nothing_is_deleted_when_only_the_newest_verifies(steps):
    for step in (10, 20, 30, 40, 50, 60):
        corrupt(steps, step)
    assert surplus(steps, keep_last=2) == [10, 20, 30, 40, 50, 60, 70]


def test_a_step_without_manifest_goes_once_two_newer_verify(steps):
    (steps / "50" / "manifest.json").unlink()
    (steps / "60" / "manifest.json").unlink()
    assert surplus(steps, keep_last=2) == [40, 70] and finished_steps(steps) == [40, 50, 60, 70]
    corrupt(steps, 40)
    assert surplus(steps, keep_last=1) == [40, 70] and finished_steps(steps) == [40, 50, 60, 70]


def test_saving_removes_old_steps(tmp_path):
    checkpoints = save_steps(tmp_path, 1, 2, 3, 4, keep_last=2)
    assert checkpoints.steps() == [3, 4] and sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_saving_keeps_an_older_step_while_a_newer_one_is_corrupt(tmp_path):
    checkpoints = save_steps(tmp_path, 1, 2, keep_last=2)
    corrupt(epath.Path(tmp_path), 2)
    checkpoints.save(3, arrays(3), {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.save(4, arrays(4), {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]


def test_an_interrupted_save_is_removed_and_never_taken_for_damage(steps):
    (steps / "80.pending").touch()
    (steps / "80.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (steps / "90.pending").touch()
    shutil.copytree(steps / "70", steps / "90")
    (steps / "90" / "manifest.json").unlink()
    (steps / "100.orbax-checkpoint-tmp-17").mkdir()
    assert finished_steps(steps)[-1] == 70 and acknowledged_steps(steps)[-1] == 70
    said: list[str] = []
    assert Checkpoints(steps, CheckpointConfig(), say=said.append).clean_up() == [80, 90]
    assert said[1] == "checkpoint step 90 was never finished and is removed"
    assert sorted(path.name for path in steps.iterdir()) == ["10", "20", "30", "40", "50", "60", "70"]


def test_a_removal_that_was_interrupted_is_ended(steps):
    for step, lost in ((70, "manifest.json"), (60, "files-0-of-1.json")):
        (steps / f"{step}.pending").touch()
        (steps / str(step) / lost).unlink()
    found = restore(steps, targets(), say=pytest.fail)
    assert found is not None and found.step == 50
    assert clean_up(steps) == [60, 70] and acknowledged_steps(steps)[-1] == 50


def test_a_removal_that_fails_half_way_leaves_no_step_that_looks_damaged(steps, monkeypatch):
    def fail_half_way(folder, *_, **__):
        (Path(folder) / "model" / "config.json").unlink()
        raise OSError("Input/output error")

    monkeypatch.setattr(shutil, "rmtree", fail_half_way)
    with pytest.raises(OSError, match="Input/output"):
        remove_step(steps, 70)
    monkeypatch.undo()
    found = restore(steps, targets(), files=("model",), say=pytest.fail)
    assert found is not None and found.step == 60
    assert clean_up(steps) == [70] and not (steps / "70").exists()


def test_a_marker_beside_an_acknowledged_step_is_all_that_goes(steps):
    (steps / "70.pending").touch()
    found = restore(steps, targets(), say=pytest.fail)
    assert found is not None and found.step == 70 and same(found.items, 70)
    assert clean_up(steps) == [] and not (steps / "70.pending").exists() and acknowledged_steps(steps)[-1] == 70


def test_other_names_are_left_alone(steps):
    for name in ("notes", "070", "7x", "-1"):
        (steps / name).mkdir()
    (steps / "80").touch()
    assert clean_up(steps) == [] and finished_steps(steps) == [10, 20, 30, 40, 50, 60, 70]
    assert (steps / "notes").exists()


def test_delete_after_removes_newer_steps_whole_or_damaged(steps):
    (steps / "60" / "manifest.json").unlink()
    assert delete_after(steps, 40) == [50, 60, 70]
    assert sorted(path.name for path in steps.iterdir()) == ["10", "20", "30", "40"]


def test_the_best_step_is_opened_by_that_name(steps):
    with pytest.raises(UserError, match=r"no checkpoint in .* has a validation loss"):
        newest(steps, "best", pytest.fail, lambda step: step)
    for step, loss in ((10, 2.5), (30, 1.5), (50, 1.75)):
        (steps / str(step) / "validation").mkdir()
        (steps / str(step) / VALIDATION).write_text(json.dumps({"validation_loss": loss}))
    assert newest(steps, "best", pytest.fail, lambda step: step) == 30
    assert newest(steps, None, pytest.fail, lambda step: step) == 70
