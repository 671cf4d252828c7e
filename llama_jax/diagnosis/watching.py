"""The probe, seen from the process that started it: what it sends, and what became of it if it stops."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Pipe
from typing import IO, Any

from llama_jax.diagnosis.probe import STARTING, Message, Request, in_one_line

_PROGRAM = "from llama_jax.diagnosis.probe import main; main()"
_START_SECONDS = 90.0
"""For JAX and its backends, beside the time in which other processes may join: a TPU of many hosts takes a minute."""
_STAGE_SECONDS = 90.0
"""For any other stage, beside what the measurements take: exchanges that do not end are a finding, too."""


def watched(request: Request, start_seconds: float = _START_SECONDS) -> Iterator[Message]:
    """Run the probe and pass on its messages. The last is `end`, or `stopped` with the stage at which it stopped, and
    why, in one line."""
    ours, theirs = Pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile("w+") as output:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        try:
            ours.send(request)
            yield from _passed_on(request, process, ours, output, start_seconds)
        finally:
            process.kill()
            process.wait()
            ours.close()


def _passed_on(
    request: Request, process: subprocess.Popen, connection: Any, output: IO[str], start_seconds: float
) -> Iterator[Message]:
    stage, ended = STARTING, False
    while not ended:
        limit = request.config.seconds + _STAGE_SECONDS
        if stage == STARTING:
            limit = start_seconds + request.config.distributed.timeout_seconds
        if not connection.poll(limit):
            yield Message("stopped", {"stage": stage, "why": f"no answer for {limit:.0f} s while {stage}"})
            return
        try:
            message = connection.recv()
        except (EOFError, OSError):
            code = process.wait()
            yield Message("stopped", {"stage": stage, "why": last_words(output, code)})
            return
        stage = message.value if message.what == "stage" else stage
        ended = message.what == "end"
        yield message


def last_words(output: IO[str], code: int) -> str:
    """Why a process ended, from what it printed and its exit code (negative: the signal that ended it)."""
    output.seek(0)
    lines = [line.strip() for line in output.read().splitlines() if line.strip()]
    # The last line of an exception, or of a check that failed in the libraries beneath.
    telling = [line for line in lines if re.match(r"([\w.]+\.)?\w*(Error|Exception|Interrupt)\b|F\d{4} ", line)]
    said = (telling or lines or [""])[-1]
    said = in_one_line(re.sub(r"^F\d{4} .*?\] (.*absl::Status: )?", "", said))
    if telling and code >= 0:
        return said
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"
    return f"{ended}: {said}" if said and (telling or code > 0) else ended
