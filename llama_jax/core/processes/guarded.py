"""A process that runs what is not trusted: it answers requests one by one, and is killed when one asks for too much.
Does not know what is asked."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple

_WORKER = Path(__file__).with_name("guarded_worker.py")
_START_SECONDS = 60.0


class Request(NamedTuple):
    """What is asked, and what it may take."""

    content: Any
    """JSON."""
    seconds: float
    """Of wall time, and of processor time with one more."""
    memory: int
    """Bytes of address space of the whole process."""
    largest_answer: int
    """Bytes."""


class GuardedProcess:
    """A program of Python in a process of its own, started when first asked, and anew after it was killed. It ends when
    nobody can ask it any more. Threads wait for one another; a forked process starts one of its own.

    Args:
        program: A file that imports nothing of ours and defines `answer(request)`.
        opening: Asked first, whenever the process is started.
    """

    def __init__(self, program: Path, opening: Request | None = None) -> None:
        self._program, self._opening = program, opening
        self._forget()
        _ALL.add(self)

    def ask(self, request: Request) -> dict[str, Any]:
        """What the program answers.

        Raises:
            TimeoutError: it takes too long.
            EOFError: it died, as it asked for too much memory or time.
        """
        with self._lock:
            try:
                return _exchange(self._running(), request)
            except TimeoutError:
                self._kill()
                raise
            except OSError:
                self._kill()
                raise EOFError from None
            except BaseException:
                self._kill()  # an answer may be under way, and would be taken for that of the next request
                raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            # -P: the folder of the worker, which is not meant to be imported from, stays off the path.
            command = [sys.executable, "-P", str(_WORKER), str(self._program)]
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that what it starts can be ended with it
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            _line(self._process, time.monotonic() + _START_SECONDS, 1)
            if self._opening is not None:
                _exchange(self._process, self._opening)
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
        self._process = None

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None


_ALL: "weakref.WeakSet[GuardedProcess]" = weakref.WeakSet()


def _forget_all() -> None:
    """In a forked process: the pipes are the parent's."""
    for process in _ALL:
        process._forget()


os.register_at_fork(after_in_child=_forget_all)


def _exchange(process: subprocess.Popen[bytes], request: Request) -> dict[str, Any]:
    asked = {"request": request.content, "seconds": request.seconds + 1.0, "memory": request.memory}
    deadline = time.monotonic() + request.seconds
    _send(process, json.dumps(asked).encode() + b"\n", deadline)
    return json.loads(_line(process, deadline, request.largest_answer))


def _send(process: subprocess.Popen[bytes], content: bytes, deadline: float) -> None:
    assert process.stdin is not None
    left = memoryview(content)
    while left:
        if not select.select([], [process.stdin], [], max(0.0, deadline - time.monotonic()))[1]:
            raise TimeoutError
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(process.stdin.fileno(), left) :]


def _line(process: subprocess.Popen[bytes], deadline: float, most: int) -> bytes:
    assert process.stdout is not None
    content = bytearray()
    while not content.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 2**16)
        content += part
        if not part or len(content) > most:
            raise EOFError
    return bytes(content)
