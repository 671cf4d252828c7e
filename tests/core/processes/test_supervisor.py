"""Starting a command again that has ended: when, how often, and when not."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from llama_jax.core.config import SuperviseConfig
from llama_jax.core.processes.supervisor import Supervisor

SUPERVISED = """
import os, pathlib, signal, sys, time
lives = pathlib.Path("lives")
life = len(lives.read_text()) + 1 if lives.exists() else 1
lives.write_text("x" * life)

def say(place):
    os.write(int(os.environ["LLAMA_JAX_SUPERVISOR"]), f"{place}\\n".encode())

def save():
    pathlib.Path(f"step_{life}").touch()
"""


class Run:
    """A program that is supervised in a folder; what it saves are the files `step_*`."""

    def __init__(self, program: str, folder: Path, restarts: int = 2, silence_seconds: int = 60) -> None:
        self.folder = folder
        self.reports: list[tuple[int, str]] = []
        self.supervisor = Supervisor(
            [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{SUPERVISED}{program}"],
            SuperviseConfig(restarts, 0.01),
            silence_seconds,
            saved=lambda: frozenset(path.name for path in folder.glob("step_*")),
            report=lambda rank, line: self.reports.append((rank, line)),
        )

    def lives(self) -> int:
        return len((self.folder / "lives").read_text())


@pytest.mark.parametrize("fault", ["sys.exit(1)", "sys.exit(76)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_command_that_was_lost_is_started_again(fault, tmp_path) -> None:
    run = Run(f"if life < 3: say('1 2 step 5'); {fault}", tmp_path)
    assert run.supervisor.run() == 0
    assert run.lives() == 3
    how = {"1": "ended with exit code 1", "6": "ended with exit code 76", "L": "was ended by SIGKILL"}[fault[-2]]
    assert run.reports == [
        (1, f"process 1 of 2, step 5: {how}; starting again in 0.01 s (1 of 2)"),
        (1, f"process 1 of 2, step 5: {how}; starting again in 0.02 s (2 of 2)"),
    ]


@pytest.mark.parametrize("code", [0, 2, 75, 130])
def test_a_command_that_has_ended_for_good_is_not_started_again(code, tmp_path) -> None:
    run = Run(f"sys.exit({code})", tmp_path)
    assert run.supervisor.run() == code
    assert (run.lives(), run.reports) == (1, [])


def test_a_command_that_fails_again_and_again_is_given_up_unless_it_saves(tmp_path) -> None:
    run = Run("if life in (2, 3): save()\nos.kill(os.getpid(), signal.SIGABRT)", tmp_path)
    assert run.supervisor.run() == 128 + signal.SIGABRT
    assert run.lives() == 5  # two without a checkpoint after the last that saved
    assert run.reports[-1][1].endswith("SIGABRT; not started again, after 2 restarts without a new checkpoint")


def test_a_command_that_says_no_more_is_killed(tmp_path) -> None:
    run = Run("if life == 1: say('0 1 step 3'); time.sleep(60)", tmp_path, silence_seconds=1)
    assert run.supervisor.run() == 0
    (report,) = run.reports
    assert report[1].startswith("process 0 of 1, step 3: said nothing for 1 s and was killed; starting again")


def test_a_command_that_need_say_nothing_is_left_alone(tmp_path) -> None:
    run = Run("say('0 1 step 3'); say(''); time.sleep(2.1)", tmp_path, silence_seconds=1)
    assert run.supervisor.run() == 0
    assert run.lives() == 1


def test_a_request_to_stop_is_passed_on_and_nothing_started_again(tmp_path) -> None:
    run = Run("signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); save(); time.sleep(60)", tmp_path)

    def ask() -> None:
        while not (tmp_path / "step_1").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    assert run.supervisor.run() == 1
    thread.join()
    assert (run.lives(), run.reports) == (1, [])
