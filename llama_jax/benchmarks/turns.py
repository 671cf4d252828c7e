"""Measurements in turns: two programs, each a process of its own, take short turns on one machine, so that noise from
outside hits both alike. Independent of what a turn does; imports nothing heavy, since it is part of both processes."""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llama_jax.core.errors import UserError

Turn = Callable[[int], Any]
"""Makes the given number of steps, and returns when all their results are there; what else it measured, as JSON
values, is what it returns."""


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and noise (half the distance of the quartiles, as a fraction of the median), and all values."""
    middle = statistics.median(values)
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [middle] * 3
    noise = (quartiles[2] - quartiles[0]) / 2 / middle
    return {"median": middle, "least": min(values), "most": max(values), "noise": noise, "all": list(values)}


def timed(turn: Turn, steps: int) -> float:
    """Seconds a step in one turn."""
    started = time.perf_counter()
    turn(steps)
    return (time.perf_counter() - started) / steps


def peak_host_bytes() -> int:
    """The most memory this process has held so far (resident set)."""
    try:
        # A forked process inherits the maximum of getrusage from its parent; this one is its own.
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processors() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(prepare: Callable[[Any], tuple[Turn, dict[str, Any]]]) -> None:
    """Entry point of the process behind a `Side`: reads the task from standard input, prepares it, and takes a turn for
    each number that follows. What anything else prints goes to standard error.

    Args:
        prepare: makes the turn function of a task, and facts to report; its first, slow steps are behind it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        turn, facts = prepare(json.loads(sys.stdin.readline()))
    except UserError as error:
        answer(error=str(error))
        return
    answer(**facts)
    for line in sys.stdin:
        started = time.perf_counter()
        measured = turn(int(line))
        seconds = (time.perf_counter() - started) / int(line)
        answer(seconds=seconds, measured=measured, peak_host_bytes=peak_host_bytes())


class Side:
    """One of the programs, in a process that calls `serve`."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        """Seconds a step, by turn."""
        self.peak_host_bytes = 0
        self._process = process

    def prepare(self, task: Any) -> dict[str, Any]:
        """Give it its task, and wait for the first, slow steps; returns what the process reports.

        Args:
            task: JSON values.

        Raises:
            UserError: the process refuses the task.
        """
        return self._ask(json.dumps(task))

    def take_turn(self, steps: int) -> Any:
        """Make some steps and note the time; returns what else was measured."""
        answer = self._ask(str(steps))
        self.seconds.append(answer["seconds"])
        self.peak_host_bytes = answer["peak_host_bytes"]
        return answer["measured"]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self.name}: the process ended with code {self._process.wait()}; see above")
        values = json.loads(answer)
        if "error" in values:
            raise UserError(values["error"])
        return values


@contextmanager
def sides(programs: Mapping[str, str]) -> Iterator[list[Side]]:
    """Start a process for each name and its `module:function` that calls `serve`; they end with the block.

    The processes import this package from where this one did, and start in an empty directory.
    """
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        started = []
        for name, entry in programs.items():
            module, function = entry.split(":")
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import {function}; {function}()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(Side(name, process))
        yield started
