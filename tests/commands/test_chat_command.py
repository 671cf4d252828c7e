"""The command `chat` at a terminal, as somebody sits before it."""

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import command_runs
import pytest

pytestmark = pytest.mark.slow


class Terminal:
    """A command at a pseudo terminal."""

    def __init__(self, process: subprocess.Popen, master: int) -> None:
        self.process, self._master = process, master
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, pattern: str, seconds: float = 30) -> str:
        """What has come since the last call, up to the pattern."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, self.seen
            if select.select([self._master], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it has ended: {self.seen}") from None
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text


# Not in a function between fork and exec: this process has threads.
_AT_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextlib.contextmanager
def at_a_terminal(*line: object) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(command_runs.ROOT), "TERM": "xterm", "NO_COLOR": "1"}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
    command = [sys.executable, "-c", _AT_THE_TERMINAL, "-m", "llama_jax", "chat", *map(str, line)]
    process = subprocess.Popen(
        command, env=environment, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize("markdown", ["true", "false"])
def test_a_conversation_at_a_terminal(tiny_run: Path, markdown: str) -> None:
    settings = ("--model", tiny_run, "--max_new_tokens", 400, "--temperature", 1, "--markdown", markdown)
    with at_a_terminal(*settings) as terminal:
        terminal.until("Ctrl-D ends")
        terminal.until("> ")
        ended = ""
        while "stopped" not in ended:  # a slow test may press too late
            terminal.type("Return the \r")
            terminal.until("Return the .*\n")
            terminal.until("[a-z]{3}")
            terminal.type("\x03\x03")  # twice, as somebody impatient does
            ended = terminal.until(r"\d+ tokens")
        assert int(re.findall(r"stopped · (\d+) tokens", ended)[0]) < 400
        terminal.until("> ")
        terminal.type("half a line\x03")
        terminal.until("Ctrl-D or /exit ends")
        terminal.type("/settings max_new_tokens 5\r")
        terminal.until(r"max_new_tokens\s+5")
        terminal.type('"""\rtwo\rlines\r"""\r')
        terminal.until(r"\. lines")
        terminal.until(r"5 tokens · [\d.]+ tokens/s")
        terminal.type("/regenerate\r")
        terminal.until("5 tokens")
        terminal.type("/settings max_new_tokens 200\r")
        terminal.until(r"max_new_tokens\s+200")
        terminal.type("on and on\r")
        terminal.until("on and on.*\n")
        terminal.until("[a-z]{3}")
        terminal.type("typed ahead")
        assert "typed ahead" not in terminal.until("tokens/s")
        terminal.until("typed ahead")
        terminal.type("\x15\x04")
        assert terminal.process.wait(60) == 0


def test_lines_from_a_pipe_are_answered_in_turn(tiny_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llama_jax", "chat", "--model", tiny_run, "--max_new_tokens", "4", "--json"]
    lines = "first\n/help\nsecond\n"
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(command_runs.ROOT)}, input=lines, capture_output=True, text=True
    )
    assert ended.returncode == 0 and "/regenerate" in ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])["messages"]
    assert [message["content"] for message in said[::2]] == ["first", "second"]
    answers = [message["content"] for message in said[1::2]]
    assert ended.stdout.startswith("\n".join(answers) + "\n")
