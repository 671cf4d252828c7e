"""Ctrl-C and SIGTERM, in processes of their own: what they say, and how they end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BEGINNING = """
import hashlib, os, signal, sys, threading, time
from llama_jax.core.processes import signals
from llama_jax.core.processes.signals import Interruptions, StopSignal, ending_on_interrupt

def in_a_library():
    # Some minutes in C, which looks for no signal and lets other threads run.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def ready():
    print("ready", flush=True)
"""


@contextlib.contextmanager
def started(program: str) -> Iterator[subprocess.Popen]:
    """A program, once it has said that it is ready."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BEGINNING + program]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code and what was printed."""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


STOPPING = """
with StopSignal() as stop:
    ready()
    while not stop.received:
        time.sleep(0.001)
print("saved", flush=True)
"""


FIRST = """
from llama_jax.core.errors import SavedAfterSignal
from llama_jax.core.processes.signals import run_first
assert run_first([sys.executable, "-c", "raise SystemExit(3)"]) == 3
child = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('told')));"
child += "print('ready', flush=True); signal.pause()"
try:
    run_first([sys.executable, "-c", child])
except SavedAfterSignal as stopped:
    print(stopped)
"""


def test_what_is_run_first_is_told_of_a_signal() -> None:
    """Else it would go on by itself, and hold what the same command needs."""
    with started(FIRST) as process:
        process.send_signal(signal.SIGTERM)
        code, output, errors = ended(process)
    assert (code, output) == (0, "told\ninterrupted; run the same command to go on\n")
    assert errors == "stopping it; again ends at once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_answered_at_once_and_granted(number) -> None:
    with started(STOPPING) as process:
        process.send_signal(number)
        assert ended(process) == (0, "saved\n", "saving; again ends at once\n")


def test_what_a_process_and_its_group_are_told_together_is_one_request() -> None:
    with started(STOPPING.replace("print", "    time.sleep(0.5)\nprint")) as process:
        process.send_signal(signal.SIGTERM)  # by `timeout`; the two are not always pending at the same time
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "saved\n", "saving; again ends at once\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_library_too_a_request_is_answered_and_a_second_one_is_the_end(number) -> None:
    with started("with StopSignal():\n    ready()\n    in_a_library()") as process:
        process.send_signal(number)
        assert process.stderr is not None and process.stderr.readline() == "saving; again ends at once\n"
        time.sleep(0.2)  # or it would be the same request once more
        process.send_signal(number)
        assert ended(process) == (128 + number, "", "ended at once; nothing more is saved\n")


TIDYING = """
with ending_on_interrupt():
    signals.let_work_tidy_up()
    try:
        ready()
        time.sleep(600)
    except KeyboardInterrupt:
        print("tidied up")

class HalfMade:
    def __del__(self):
        self.part

HalfMade()
sys.exit(7)
"""


def test_an_interrupt_lets_what_is_at_work_tidy_up() -> None:
    with started(TIDYING) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process) == (7, "tidied up\n", "")


INTERRUPTED = {
    "a library that computes": ([0.2], "in_a_library()"),
    "a library that swallows": (
        [0.2],
        """
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        in_a_library()""",
    ),
    "a second one, while the first is tidied up after": (
        [0.2, 0.4],
        """
    signals._SECONDS_IN_A_LIBRARY = 600
    try:
        time.sleep(600)
    finally:
        in_a_library()""",
    ),
    "what the garbage collector calls": (
        [0.2],
        """
    class Freed:
        def __del__(self):
            time.sleep(600)
    signals._SECONDS_IN_A_LIBRARY = signals._SECONDS_TO_TIDY_UP = 600
    freed = Freed()
    del freed""",
    ),
    "what comes after a request to stop": (
        [0.2],
        """
    with StopSignal():
        pass
    in_a_library()""",
    ),
}


@pytest.mark.parametrize("work", INTERRUPTED)
def test_an_interrupt_is_the_end_where_nothing_comes_of_it(work) -> None:
    # The program interrupts itself, so that it surely is where it should be.
    seconds, body = INTERRUPTED[work]
    program = f"""
signals._SECONDS_IN_A_LIBRARY = signals._SECONDS_TO_TIDY_UP = 0.1
for seconds in {seconds}:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
ready()
with ending_on_interrupt():
    signals.let_work_tidy_up()
    {body}
"""
    with started(program) as process:
        assert ended(process) == (130, "", "interrupted\n")


def test_before_there_is_anything_to_tidy_up_an_interrupt_is_the_end() -> None:
    with started("with ending_on_interrupt():\n    ready()\n    time.sleep(600)") as process:
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "interrupted\n")


def test_what_ignores_interrupts_goes_on_ignoring_them() -> None:
    ignoring = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    with started(ignoring + "with ending_on_interrupt():\n    ready()\n    time.sleep(0.3)") as process:
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "", "")


def test_what_is_unfinished_is_removed_at_a_sudden_end(tmp_path) -> None:
    program = f"""
import pathlib
signals._SECONDS_IN_A_LIBRARY = 0.1
for name in ("out", "absent"):
    signals.remove_at_a_sudden_end(pathlib.Path({str(tmp_path)!r}) / name)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
ready()
with ending_on_interrupt():
    in_a_library()
"""
    (tmp_path / "out" / "part").mkdir(parents=True)
    with started(program) as process:
        assert ended(process) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


TALKING = """
signals._SECONDS_IN_A_LIBRARY = 0.2
interrupt = lambda seconds: threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
ready()
with ending_on_interrupt(), Interruptions(lambda: print("tidied up", flush=True)) as interruptions:
    signals.let_work_tidy_up()
"""


def test_an_interrupt_is_noted_while_something_computes_and_raised_while_nothing_does() -> None:
    program = f"""{TALKING}
    for _ in range(2):
        with interruptions.noted() as noted:
            interrupt(0.01), interrupt(0.02)
            time.sleep(0.1)
        print(noted.is_set())
        try:
            interrupt(0.01)
            time.sleep(600)
        except KeyboardInterrupt:
            print("raised")
"""
    with started(program) as process:
        assert ended(process) == (0, "True\nraised\n" * 2, "")


def test_an_interrupt_is_the_end_where_nothing_came_of_the_one_before() -> None:
    program = f"""{TALKING}
    with interruptions.noted():
        interrupt(0.1), interrupt(0.5)
        in_a_library()
"""
    with started(program) as process:
        assert ended(process) == (130, "tidied up\n", "interrupted\n")
