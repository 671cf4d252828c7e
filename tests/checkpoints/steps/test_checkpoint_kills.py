"""A process that is killed, wherever in the life of checkpoints, loses no acknowledged step and leaves nothing that
cannot be restored."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from checkpoint_trees import arrays, files, same, targets

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.restoring import restore
from llama_jax.checkpoints.steps.saving import Checkpoints

SCRIPT = Path(__file__).parents[1] / "save_until_killed.py"
PHASES = ("first-save", "save", "clean-up", "restore")


def check(tmp_path: Path, phase: str, seed: int, trials: int) -> None:
    directories = [tmp_path / str(trial) for trial in range(trials)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, SCRIPT, phase, str(seed), *directories]
    subprocess.run(command, check=True, timeout=60 + 120 * trials, env=environment)
    found = Counter(Path(f"{directory}.phase").read_text() for directory in directories)
    newest = Counter(check_one(directory) for directory in directories)
    print(f"{phase}: killed in {dict(found)}; newest step afterwards: {dict(newest)}")
    assert found["after"] < trials / 2 + 1, "too few died where they were to: this showed nothing"


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
    for step in kept:
        older = restore(directory, targets(), step=step, say=pytest.fail)
        assert older is not None and same(older.items, step)
    left = {path.name for path in directory.iterdir()} if directory.exists() else set()
    assert left == {*map(str, kept)}
    checkpoints.save(newest + 1, arrays(newest + 1), files(newest + 1), {})
    checkpoints.wait()
    again = restore(directory, targets(), say=pytest.fail)
    assert again is not None and again.step == newest + 1 and same(again.items, newest + 1)
    return newest


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_loses_no_acknowledged_step(tmp_path, phase):
    check(tmp_path, phase, seed=0, trials=3)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_kill_loses_no_acknowledged_step_in_a_long_sweep(tmp_path, phase, seed):
    check(tmp_path, phase, seed=seed, trials=25)
