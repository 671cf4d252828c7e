"""Imported by every Python that has this folder on its path: makes processes of a job fail at some steps, each once.

The environment says which, `FAULTS="how:rank:step:file …"`; the file is made when it happens, and keeps it from
happening again. Besides, `BAD_LOSSES="step …"` are those whose loss is no number, in every life and process, and
`BEGUN=file` takes each step that process 0 begins, with the time."""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def fill_disk(life: Any) -> None:
    """For the next save of this process: no file of it can grow beyond what those of arrays have, and logs do not."""
    save = life.save

    def failing(*arguments: Any) -> None:
        del life.save
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            save(*arguments)
            life._checkpoints.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    life.save = failing


def flip_a_bit_and_die(life: Any) -> None:
    """Of the newest checkpoint, in the biggest file of its moments."""
    folder = life._run.checkpoints
    newest = max(sys.modules["llama_jax.checkpoints.steps.folders"].acknowledged_steps(folder))
    files = [path for path in Path(folder / str(newest) / "optimizer").rglob("*") if path.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 8
    biggest.write_bytes(content)
    os.kill(os.getpid(), signal.SIGKILL)


HOW = {
    "killed": lambda life: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda life: os.kill(os.getpid(), signal.SIGSTOP),
    "asked": lambda life: os.kill(os.getpid(), signal.SIGTERM),
    "stuck": lambda life: time.sleep(100_000),
    "locked": lambda life: ctypes.PyDLL(None).sleep(100_000),
    "broken": lambda life: 1 / 0,
    "full": fill_disk,
    "corrupted": flip_a_bit_and_die,
}


def own_rank() -> str:
    name = "--distributed.process_id"
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else "0"


def imported(module: str, name: str) -> Any:
    """Wait for a class to be there."""
    while not hasattr(sys.modules.get(module), name):
        time.sleep(0.005)
    return getattr(sys.modules[module], name)


def wait_and_patch() -> None:
    faults: dict[int, tuple[str, Path]] = {}
    for fault in os.environ.get("FAULTS", "").split():
        how, rank, step, file = fault.split(":")
        if rank == own_rank() and not Path(file).exists():
            faults[int(step)] = how, Path(file)
    bad_losses = {int(step) for step in os.environ.get("BAD_LOSSES", "").split()}
    begun = os.environ.get("BEGUN") if own_rank() == "0" else None

    life, program = imported("llama_jax.runs.life", "Life"), imported("llama_jax.training.program", "Program")
    before_step, place_batch = life.before_step, program.place_batch
    now = 0

    def failing(self: Any, step: int) -> None:
        nonlocal now
        before_step(self, now := step)
        if begun:
            with Path(begun).open("a") as file:
                file.write(f"{step} {time.time()}\n")
        if step in faults:
            how, happened = faults.pop(step)
            happened.touch()
            HOW[how](self)

    def poisoned(self: Any, rows: dict[str, Any], batch_size: int) -> Any:
        if now in bad_losses:
            rows = {**rows, "loss_weights": rows["loss_weights"] * float("nan")}
        return place_batch(self, rows, batch_size)

    life.before_step, program.place_batch = failing, poisoned


if os.environ.keys() & {"FAULTS", "BAD_LOSSES", "BEGUN"}:
    # Not of a supervisor, which needs no JAX; of whoever has one.
    threading.Thread(target=wait_and_patch, daemon=True).start()
