"""The watchdog of a process that hangs: how that ends, and what is reported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BEGINNING = """
import ctypes, pathlib, sys, threading, time
from llama_jax.core.config import SuperviseConfig
from llama_jax.core.processes.peers import Peers
from llama_jax.core.processes.watchdog import STUCK, Watchdog, mark

def watched(step_seconds, other_seconds, processes=1):
    peers = Peers(0, processes, lambda text: None, dict)
    return Watchdog(SuperviseConfig(0, 0.0, step_seconds, other_seconds), 1, peers, pathlib.Path(sys.argv[1]))

def slow_to_read():
    time.sleep(60)
"""


def run(program: str, folder: Path) -> tuple[int, str]:
    """Exit code and what it printed."""
    command = [sys.executable, "-c", BEGINNING + program, str(folder / "faults")]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.stdout == ""
    return result.returncode, result.stderr


def test_a_step_that_hangs_ends_the_process_and_is_reported(tmp_path) -> None:
    program = """
threading.Thread(target=time.sleep, args=[60], name="other", daemon=True).start()
with watched(1.0, 0.0):
    mark("step 7", is_step=True)
    slow_to_read()
"""
    code, errors = run(program, tmp_path)
    assert code == 76
    head = "process 0 of 1, step 7: nothing for 1 s (supervise.step_seconds)\n"
    report = (tmp_path / "faults" / "process_00000.txt").read_text()
    assert errors.startswith(head) and report[20:].startswith(head)
    for said in (errors, report):
        assert "in slow_to_read\n" in said
    assert "thread other:" in report and "thread other:" not in errors
    assert errors.endswith(f"exit code 76; see {tmp_path / 'faults'}\n")


@pytest.mark.slow
def test_a_process_that_moves_or_has_no_limit_goes_on(tmp_path) -> None:
    program = """
with watched(1.0, 0.0):
    time.sleep(1.6)
    mark("saving")
    time.sleep(1.6)
    for step in range(8):
        mark(f"step {step}", is_step=True)
        time.sleep(0.2)
time.sleep(1.6)
"""
    assert run(program, tmp_path) == (0, "")
    assert not (tmp_path / "faults").exists()


@pytest.mark.parametrize(("beat", "code"), [("1", 76), ("next(beats)", 1)], ids=["gone", "there"])
def test_an_error_ends_the_process_at_once_where_another_is_gone(beat, code, tmp_path) -> None:
    program = f"""
import itertools
beats = itertools.count()
peers = Peers(0, 2, lambda text: None, lambda: {{1: '{{"marks": 3, "place": "step 3", "beat": %d}}' % {beat}}})
with Watchdog(SuperviseConfig(), 60, peers, pathlib.Path(sys.argv[1])):
    time.sleep(0.5)
    raise RuntimeError("connection closed")
"""
    ended, errors = run(program, tmp_path)
    assert ended == code
    assert "RuntimeError: connection closed\n" in errors
    said = "process 0 of 2, starting: RuntimeError; process 1, step 3, is silent\n"
    assert errors.startswith(said) == (code == 76)
    assert (tmp_path / "faults").exists() == (code == 76)


def test_what_holds_pythons_lock_is_ended_too(tmp_path) -> None:
    code, errors = run("with watched(1.0, 1.0, 2):\n    time.sleep(0.6)\n    ctypes.PyDLL(None).sleep(60)", tmp_path)
    assert code == 1
    assert errors.startswith("Timeout (0:00:02)!\n") and 'File "<string>"' in errors


@pytest.mark.slow
def test_a_process_that_was_stopped_for_a_while_goes_on(tmp_path) -> None:
    program = """
with watched(7.0, 7.0):
    print("here", flush=True)
    time.sleep(1)
"""
    command = [sys.executable, "-c", BEGINNING + program, str(tmp_path / "faults")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
