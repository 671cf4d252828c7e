"""Resume a toy run from step 3, and die by SIGKILL at the N-th operation on its files; once for each N.

Usage: resume_until_killed.py RUN FOLDER N...

RUN is copied to FOLDER/N first. N 0: nothing is killed, and FOLDER/0.operations says how many there were. Imports once
and forks before JAX starts."""

import os
import shutil
import signal
import sys
from pathlib import Path

from toy_runs import Toy

STEP = 3
_OPERATIONS = {"open", "os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.truncate", "os.listdir", "os.scandir"}


def resume_until_killed(directory: Path, number: int) -> int:
    """Resume; returns how many operations there were."""
    done = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal done
        if event not in _OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.fsdecode(arguments[0]).startswith(str(directory)):
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    Toy(directory).train(resume=STEP)
    return done


def main() -> None:
    run, folder = map(Path, sys.argv[1:3])
    for number in map(int, sys.argv[3:]):
        directory = folder / str(number)
        shutil.copytree(run, directory)
        child = os.fork()
        if child == 0:
            done = resume_until_killed(directory, number)
            Path(f"{directory}.operations").write_text(str(done))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
