"""Die by SIGKILL in a phase of the life of checkpoints; once for each directory given.

Usage: save_until_killed.py PHASE SEED DIRECTORY...

Imports once and forks before JAX starts, so that a trial takes about a second. Each child first does what it will be
killed in, in a directory of its own, to know how long that takes. What was acknowledged for certain is in the file
DIRECTORY.acknowledged, and where a child was when it died in DIRECTORY.phase."""

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from checkpoint_trees import arrays, files, save_steps, targets
from etils import epath

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import pending_marker, remove_step
from llama_jax.checkpoints.steps.restoring import restore
from llama_jax.checkpoints.steps.saving import Checkpoints

OPERATIONS = {"open", "os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.listdir", "os.scandir"}


class Trial:
    """One directory, and the moment at which its process is to die."""

    def __init__(self, directory: Path, draw: random.Random) -> None:
        self.directory, self._draw = directory, draw
        self.saved = Checkpoints(directory, CheckpointConfig(keep_last=2), say=print)

    def save(self, step: int, tree) -> None:
        self.saved.save(step, tree, files(step), {})
        self.saved.wait()
        Path(f"{self.directory}.acknowledged").write_text(str(step))

    def timed(self, seconds: float) -> None:
        """Die within so many seconds."""
        delay = self._draw.uniform(0, seconds)
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def counted(self, operations: int) -> None:
        """Die at one of so many operations on files of the directory."""
        number = self._draw.randint(1, operations)
        on_operations(self.directory, lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == number else None)

    def says(self, phase: str) -> None:
        Path(f"{self.directory}.phase").write_text(phase)


def on_operations(directory: Path, call: Callable[[int], object]) -> None:
    """Have a function called before each operation on files of a directory, with its number from 1."""
    done = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal done
        of_path = event in OPERATIONS and isinstance(arguments[0], str | os.PathLike)
        if of_path and os.fspath(arguments[0]).startswith(f"{directory}/"):
            done += 1
            call(done)

    sys.addaudithook(count)


def seconds_of(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def first_save(trial: Trial) -> None:
    """Of a run that has none yet; nothing is known to be acknowledged."""
    rehearsal = Trial(Path(f"{trial.directory}.rehearsal"), random.Random(0))
    rehearsal.save(1, arrays(1))
    seconds = seconds_of(lambda: rehearsal.save(2, arrays(2)))
    tree = arrays(1)
    trial.says("first save")
    trial.timed(1.2 * seconds)
    trial.save(1, tree)
    trial.says("after")


def save(trial: Trial) -> None:
    """The third step and later ones, with which older ones are removed."""
    trial.save(1, arrays(1))
    seconds = seconds_of(lambda: trial.save(2, arrays(2)))
    trees = [arrays(step) for step in range(3, 40)]
    trial.says("save")
    trial.timed(4 * seconds)
    for step, tree in enumerate(trees, start=3):
        trial.save(step, tree)


def clean_up(trial: Trial) -> None:
    """What an interrupted save left, an interrupted removal, and a step too many."""

    def leave(directory: Path) -> None:
        save_steps(directory, 1, 2, 3, 4)
        shutil.copytree(directory / "4", directory / "5")
        (directory / "5" / "manifest.json").unlink()
        pending_marker(epath.Path(directory), 5).touch()
        shutil.copytree(directory / "4" / "params", directory / "6.orbax-checkpoint-tmp")
        pending_marker(epath.Path(directory), 6).touch()

    def tidy(directory: Path) -> None:
        Checkpoints(directory, CheckpointConfig(), say=print).clean_up()
        remove_step(epath.Path(directory), 1)

    operations: list[int] = []
    leave(rehearsal := Path(f"{trial.directory}.rehearsal"))
    on_operations(rehearsal, operations.append)
    tidy(rehearsal)
    leave(trial.directory)
    Path(f"{trial.directory}.acknowledged").write_text("4")
    trial.says("clean-up")
    trial.counted(len(operations))
    tidy(trial.directory)
    trial.says("after")


def restoring(trial: Trial) -> None:
    """The newest step."""
    trial.save(1, arrays(1))
    trial.save(2, arrays(2))
    read = lambda: restore(trial.directory, targets(), files=("data",), say=print)  # noqa: E731
    read()
    seconds = seconds_of(read)
    trial.says("restore")
    trial.timed(seconds)
    read()
    trial.says("after")


PHASES = {"first-save": first_save, "save": save, "clean-up": clean_up, "restore": restoring}


def main() -> None:
    phase, draw = PHASES[sys.argv[1]], random.Random(sys.argv[2])
    for directory in sys.argv[3:]:
        seed = draw.random()
        child = os.fork()
        if child == 0:
            phase(Trial(Path(directory), random.Random(seed)))
            time.sleep(5)  # what was timed may be quicker than when it was rehearsed
            os.kill(os.getpid(), signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            sys.exit(f"the child for {directory} ended by itself: {status}")


if __name__ == "__main__":
    main()
