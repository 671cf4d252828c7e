"""Imported by every Python that has this folder on its path: makes one process of a job fail at one step, once.

The environment says which, `FAULT=how:rank:step:file`; the file is made when it happens, and keeps it from happening
again."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

FAULTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "asked": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stuck": lambda: time.sleep(100_000),
    "locked": lambda: ctypes.PyDLL(None).sleep(100_000),
    "broken": lambda: 1 / 0,
}


def wait_and_patch(how: str, step: int, file: Path) -> None:
    while not hasattr(sys.modules.get("llama_jax.runs.life"), "Life"):
        time.sleep(0.005)
    life = sys.modules["llama_jax.runs.life"].Life
    before_step = life.before_step

    def failing(self, number: int) -> None:
        before_step(self, number)
        if number == step:
            file.touch()
            FAULTS[how]()

    life.before_step = failing


def own_rank() -> str:
    name = "--distributed.process_id"
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else "0"


if "FAULT" in os.environ:
    how, rank, step, file = os.environ["FAULT"].split(":")
    # Not of a supervisor, which needs no JAX; of whoever has one.
    if rank == own_rank() and not Path(file).exists():
        threading.Thread(target=wait_and_patch, args=[how, int(step), Path(file)], daemon=True).start()
