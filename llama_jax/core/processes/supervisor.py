"""Starting a command again that was lost: the process that waits for it. Knows no JAX."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama_jax.core.config import SuperviseConfig
from llama_jax.core.processes.patience import Unchanged
from llama_jax.core.processes.signals import passed_on
from llama_jax.core.processes.watchdog import SUPERVISOR

_FINAL = {0, 2, 75, 130}
"""Exit codes after which there is nothing to start again: done, the user's mistake, asked to stop, interrupted."""
_MOST_PAUSE_SECONDS = 300.0


class _Ended(NamedTuple):
    code: int
    """That of a shell: 128 and more for a signal."""
    how: str
    rank: int
    who: str
    """And where it was last, as far as its watchdog has said so."""


class Supervisor:
    """Runs a command until it ends well, or fails again and again."""

    def __init__(
        self,
        command: Sequence[str],
        config: SuperviseConfig,
        silence_seconds: int,
        saved: Callable[[], frozenset[str]],
        report: Callable[[int, str], None],
    ) -> None:
        """
        Args:
            command: with its arguments.
            silence_seconds: after which a process whose watchdog has said something, and says no more, is killed.
            saved: names what there is of checkpoints.
            report: takes what is said of a fault, with the rank of the process.
        """
        self._command, self._config, self._silence_seconds = command, config, silence_seconds
        self._saved, self._report = saved, report
        self._process: subprocess.Popen | None = None
        self._asked = threading.Event()

    def run(self) -> int:
        """Gives the exit code of the last time."""
        failures, saved = 0, self._saved()
        with passed_on(self._pass_on):
            while True:
                ended = self._once()
                if ended.code in _FINAL or self._asked.is_set():
                    return ended.code
                now = self._saved()
                failures, saved = 1 if now - saved else failures + 1, now
                if failures > self._config.restarts:
                    self._say(ended, f"not started again, after {failures - 1} restarts without a new checkpoint")
                    return ended.code
                pause = min(self._config.pause_seconds * 2 ** (failures - 1), _MOST_PAUSE_SECONDS)
                self._say(ended, f"starting again in {pause:g} s ({failures} of {self._config.restarts})")
                if self._asked.wait(pause):
                    return 75

    def _pass_on(self, number: int) -> None:
        self._asked.set()
        if self._process is not None:
            self._process.send_signal(number)

    def _say(self, ended: _Ended, what: str) -> None:
        line = f"{ended.who} {ended.how}; {what}"
        sys.stderr.write(f"supervisor: {line}\n")
        sys.stderr.flush()
        self._report(ended.rank, line)

    def _once(self) -> _Ended:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        environment = os.environ | {SUPERVISOR: str(writer)}
        try:
            process = self._process = subprocess.Popen(self._command, env=environment, pass_fds=[writer])
            os.close(writer)
            if self._asked.is_set():  # by a signal that came too early to be passed on
                process.terminate()
            place, was_silent = self._wait(process, reader)
        finally:
            os.close(reader)
        code = process.wait()
        rank, count, where = place.split(" ", 2) if place else ("0", "1", "start-up")
        if was_silent:
            how = f"said nothing for {self._silence_seconds:g} s and was killed"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        if code == -signal.SIGABRT and count != "1":
            how += ", as JAX does when process 0 is gone"
        who = f"process {rank} of {count}, {where}:" if place else "the command, before it opened the run,"
        return _Ended(code if code >= 0 else 128 - code, how, int(rank), who)

    def _wait(self, process: subprocess.Popen, reader: int) -> tuple[str, bool]:
        """Wait for the end of a process, or kill it; gives the last place it has said, and whether it was killed."""
        place, lines, heard, silence = "", [""], 0, Unchanged()
        while process.poll() is None:
            if select.select([reader], [], [], 1.0)[0]:
                if not (told := os.read(reader, 1 << 16)):
                    break  # nobody is left who could say something
                heard, lines = heard + 1, told.decode().splitlines()
                place = next((line for line in reversed(lines) if line), place)
            if silence.look(heard) >= self._silence_seconds and lines[-1]:  # one that watches no more says ""
                process.kill()
                return place, True
        return place, False
