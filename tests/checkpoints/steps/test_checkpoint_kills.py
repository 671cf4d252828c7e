"""A process that is killed while it saves loses no acknowledged step and leaves nothing that cannot be restored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_trees import arrays, files, same, targets

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.restoring import restore
from llama_jax.checkpoints.steps.saving import Checkpoints

SCRIPT = Path(__file__).parents[1] / "save_until_killed.py"


def check(tmp_path: Path, seed: int, trials: int) -> None:
    directories = [tmp_path / str(trial) for trial in range(trials)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, SCRIPT, str(seed), *directories]
    subprocess.run(command, check=True, timeout=60 + 10 * trials, env=environment)
    newest = [check_one(directory) for directory in directories]
    assert max(newest) > 0, "no trial lived to its first acknowledged step: this showed nothing"


def check_one(directory: Path) -> int:
    """Check what one killed process left; returns its newest step, 0 if none."""
    record = Path(f"{directory}.acknowledged")
    acknowledged = int(record.read_text() or 0) if record.exists() else 0
    found = restore(directory, targets(), files=("data",), say=pytest.fail)
    newest = found.step if found else 0
    assert newest >= acknowledged
    if found:
        assert same(found.items, newest) and found.files == {"data/streams-0-of-1.json": b'{"position": %d}' % newest}

    checkpoints = Checkpoints(directory, CheckpointConfig(keep_last=2), say=print)
    checkpoints.clean_up()
    kept = checkpoints.steps()
    assert kept[-1:] == ([newest] if newest else []) and len(kept) >= min(newest, 2)
    left = {path.name for path in directory.iterdir()} if directory.exists() else set()
    assert left == {*map(str, kept)}
    checkpoints.save(newest + 1, arrays(newest + 1), files(newest + 1), {})
    checkpoints.wait()
    again = restore(directory, targets(), say=pytest.fail)
    assert again is not None and again.step == newest + 1 and same(again.items, newest + 1)
    return newest


@pytest.mark.slow
def test_a_killed_save_loses_no_acknowledged_step(tmp_path):
    check(tmp_path, seed=0, trials=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_killed_save_loses_no_acknowledged_step_in_a_long_sweep(tmp_path, seed):
    check(tmp_path, seed=seed, trials=10)
