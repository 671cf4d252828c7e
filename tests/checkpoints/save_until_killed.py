"""Save steps 1, 2, 3, … without a pause until a SIGKILL at a random moment; once for each directory given.

Usage: save_until_killed.py SEED DIRECTORY...

Imports once and forks before JAX starts, so that a trial takes less than a second. What was acknowledged for certain
is in the file DIRECTORY.acknowledged."""

import os
import random
import signal
import sys
import threading
from pathlib import Path

from checkpoint_trees import arrays, files

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.saving import Checkpoints

SECONDS_UNTIL_FIRST_STEPS = 1.0


def save_until_killed(directory: Path, draw: random.Random) -> None:
    delay = draw.uniform(0, 2 * SECONDS_UNTIL_FIRST_STEPS)
    checkpoints = Checkpoints(directory, CheckpointConfig(keep_last=2), say=print)
    trees = [arrays(step) for step in range(1, 200)]
    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for step, tree in enumerate(trees, start=1):
        checkpoints.save(step, tree, files(step), {})
        checkpoints.wait()
        Path(f"{directory}.acknowledged").write_text(str(step))


def main() -> None:
    draw = random.Random(sys.argv[1])
    for directory in sys.argv[2:]:
        seed = draw.random()
        child = os.fork()
        if child == 0:
            save_until_killed(Path(directory), random.Random(seed))
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            sys.exit(f"the child for {directory} ended by itself: {status}")


if __name__ == "__main__":
    main()
