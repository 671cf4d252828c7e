"""A command with all processes that it starts: how long it takes, and how much memory they hold together. Linux."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llama_jax.core.errors import UserError

_SECONDS_BETWEEN = 0.25


class Measured(NamedTuple):
    """What a command took."""

    seconds: float
    """From its start to its end, with all that it imports."""
    peak_bytes: int
    """The most memory that its processes held at a time, what they share counted once (proportional set size), looked
    at four times a second."""
    processor_seconds: float
    """What all of its processors were at work for it, as seen when its processes were looked at last."""


def measured(command: Sequence[str], log: Path) -> Measured:
    """Run a command to its end; what it prints goes to `log`.

    Raises:
        UserError: this system does not tell the memory of processes.
        RuntimeError: the command failed; with the end of what it printed.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("benchmark prepare: asks /proc for the memory of processes, which is there on Linux alone")
    peak, worked, ended = 0, dict[int, float](), threading.Event()

    def watch(number: int) -> None:
        nonlocal peak
        while not ended.wait(_SECONDS_BETWEEN):
            processes = list(_tree(number))
            peak = max(peak, sum(map(_proportional_bytes, processes)))
            worked.update((each, seconds) for each in processes if (seconds := _processor_seconds(each)))

    started = time.perf_counter()
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        watching = threading.Thread(target=watch, args=(process.pid,))
        watching.start()
        try:
            code = process.wait()
        finally:
            seconds = time.perf_counter() - started
            ended.set()
            watching.join()
    if code:
        raise RuntimeError(f"{command[-1]} ended with code {code}:\n{log.read_text(errors='replace')[-2000:]}")
    return Measured(seconds, peak, sum(worked.values()))


def _tree(process: int) -> Iterator[int]:
    """A process and all that it, and they, started."""
    yield process
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return  # it has ended
    for child in children:
        yield from _tree(child)


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # in user and in system mode
