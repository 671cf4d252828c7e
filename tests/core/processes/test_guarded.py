"""What is not trusted runs in a process that is killed when it asks for too much, and is there again for the next."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llama_jax.core.processes.guarded import GuardedProcess, Request

PROGRAM = """
opened = []

def answer(request):
    what, value = request
    if what == "open":
        opened.append(value)
    if what == "repeat":
        return {"found": "a" * value}
    if what == "store":
        try:
            return {"found": len(bytearray(value))}
        except MemoryError:
            return {"error": "MemoryError"}
    while what == "never":
        pass
    if what == "raise":
        raise KeyError(value)
    return {"found": value, "opened": opened}
"""
MEBIBYTE = 2**20


def ask(process: GuardedProcess, what: str, value: object, *, seconds: float = 30.0, most: int = 1000) -> dict:
    return process.ask(Request([what, value], seconds, 512 * MEBIBYTE, most))


@pytest.fixture(scope="module")
def process(tmp_path_factory) -> GuardedProcess:
    program = tmp_path_factory.mktemp("program") / "echo.py"
    program.write_text(PROGRAM)
    return GuardedProcess(program, Request(["open", "first"], 30.0, 512 * MEBIBYTE, 1000))


def test_answers_come_from_one_process_that_is_opened_once(process) -> None:
    for value in ("a", "é\n", None, [1, {"b": 2.5}]):
        assert ask(process, "echo", value) == {"found": value, "opened": ["first"]}


def test_what_takes_too_long_is_killed_and_the_next_is_answered_by_a_new_process(process) -> None:
    with pytest.raises(TimeoutError):
        ask(process, "never", None, seconds=0.2)
    assert ask(process, "echo", 3) == {"found": 3, "opened": ["first"]}


def test_memory_and_the_length_of_answers_are_bounded(process) -> None:
    assert ask(process, "store", 64 * MEBIBYTE) == {"found": 64 * MEBIBYTE}
    assert ask(process, "store", 600 * MEBIBYTE) == {"error": "MemoryError"}
    assert len(ask(process, "repeat", 900)["found"]) == 900
    with pytest.raises(EOFError):
        ask(process, "repeat", 1001)


def test_a_program_that_dies_is_an_end_and_is_started_again(process) -> None:
    with pytest.raises(EOFError):
        ask(process, "raise", "x")
    assert ask(process, "echo", 4)["found"] == 4


def test_threads_get_their_own_answers(process) -> None:
    answers: dict[int, object] = {}

    def run(number: int) -> None:
        answers[number] = ask(process, "echo", number)["found"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(8)}


PARENT = """
import sys
from pathlib import Path
from llama_jax.core.processes.guarded import GuardedProcess, Request
GuardedProcess(Path(sys.argv[1])).ask(Request(sys.argv[2], 600.0, 2**29, 1000))
"""
SLEEPER = """
import os, time

def answer(file):
    with open(file + ".part", "w") as opened:
        opened.write(str(os.getpid()))
    os.rename(file + ".part", file)
    time.sleep(600)
"""


@pytest.mark.slow
def test_it_ends_when_whoever_would_end_it_was_killed(tmp_path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "sleeper.py"), str(tmp_path / "pid")]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])})
    deadline = time.monotonic() + 30
    try:
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        parent.kill()
        parent.wait()
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.monotonic() < deadline
