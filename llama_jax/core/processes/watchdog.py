"""Leaving where a run no longer moves: when a step hangs, or another process of the job is stuck or gone.

JAX waits for ever for a process that lives and does not take part. So each process watches itself from a thread of its
own, leaves with an exit code of its own, and reports who held up the rest."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import NamedTuple, NoReturn

from etils import epath

from llama_jax.core.config import SuperviseConfig
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.files import GrowingFile
from llama_jax.core.processes.patience import Unchanged
from llama_jax.core.processes.peers import Notice, Peers
from llama_jax.core.processes.signals import end_at_once

STUCK = 76
"""Exit code of a process that its watchdog has ended."""

_POLL_SECONDS = 0.5
_NOTICE_SECONDS = 0.25
"""From a notice to the next, in a job of up to 64 processes; in larger ones more, as process 0 is asked by all."""
_REPORT_SECONDS = 10.0

_OF_ALL = (UserError, SavedAfterSignal)
"""Errors that all processes raise."""

SUPERVISOR = "LLAMA_JAX_SUPERVISOR"
"""Environment variable with the pipe to the process that supervises this one."""

_given = os.environ.pop(SUPERVISOR, None)  # out of it: what this process starts has no supervisor
_supervisor = None if _given is None else int(_given)


def is_supervised() -> bool:
    """Whether another process waits for this one, to start it again."""
    return _given is not None


def mark(place: str, *, is_step: bool = False) -> None:
    """Say that the run has come to a place, such as "step 12, computing". All processes of a job come to the same ones.

    Args:
        is_step: whether it is to be left within `supervise.step_seconds`; else within `supervise.other_seconds`.
    """
    if _watching is not None:
        _watching.mark(place, is_step)


def raised(error: BaseException | None) -> None:
    """To be called at the end of a block, with the error that ends it if there is one, before anything is closed that
    takes the other processes. Where one of them is gone, that is why it was raised: says who, and leaves."""
    if _watching is not None and error is not None and not isinstance(error, _OF_ALL):
        _watching.raised(error)


class _Place(NamedTuple):
    marks: int
    name: str
    is_step: bool


class Watchdog:
    """Watches this process in a `with` block, one at a time."""

    def __init__(self, config: SuperviseConfig, heartbeat_seconds: int, peers: Peers, faults: epath.Path) -> None:
        """
        Args:
            heartbeat_seconds: after which a silent process is lost.
            peers: the processes of the job, as this one sees them.
            faults: folder for the reports; made when there is one.
        """
        self._config, self._heartbeat, self._peers, self._faults = config, heartbeat_seconds, peers, faults
        self._place = _Place(0, "starting", False)
        self._last_words: Notice | None = None
        self._error: BaseException | None = None
        self._has_failed = False
        self._pause = _NOTICE_SECONDS * max(1.0, peers.count / 64)
        self._silence = 4 * self._pause  # after which a process is taken for gone when an error was raised
        self._patience = 2 * self._silence  # of an error for that silence, and of the stuck for each other's notices
        self._closed = threading.Event()
        self._leaving = threading.Lock()
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if peers.count > 1:
            self._threads.append(threading.Thread(target=self._exchange, name="peers", daemon=True))

    def __enter__(self) -> None:
        global _watching
        _watching = self
        for thread in self._threads:
            thread.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        global _watching
        raised(error)
        self._has_failed = error is not None and not isinstance(error, _OF_ALL)
        _watching = None
        self._closed.set()
        for thread in self._threads:
            thread.join(self._patience)
        faulthandler.cancel_dump_traceback_later()
        tell_supervisor()

    def mark(self, name: str, is_step: bool) -> None:
        """See the function."""
        self._place = _Place(self._place.marks + 1, name, is_step)

    def raised(self, error: BaseException) -> None:
        """See the function."""
        if error is self._error or self._peers.count == 1:
            return
        self._error = error
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if silent := self._peers.silent(self._silence):
                self._leave(type(error).__name__, silent, "".join(traceback.format_exception(error)))
            time.sleep(0.1)

    def _watch(self) -> None:
        still = Unchanged()
        while not self._closed.wait(_POLL_SECONDS):
            place = self._place
            tell_supervisor(self._peers.rank, self._peers.count, place.name)
            setting = "step_seconds" if place.is_step else "other_seconds"
            limit = getattr(self._config, setting)
            if limit and (is_supervised() or self._peers.count > 1):
                # From C, should something hold Python's lock, so that none of this runs again. Elsewhere a person may
                # stop the process for a night, which C does not see.
                faulthandler.dump_traceback_later(limit + self._heartbeat, exit=True, file=2)
            if limit and still.look(place) >= limit:
                self._leave(f"nothing for {limit:g} s (supervise.{setting})", [])
            if silent := self._peers.silent(self._heartbeat):
                self._leave(f"no answer for {self._heartbeat:g} s (distributed.heartbeat_seconds)", silent)

    def _exchange(self) -> None:
        beat = 0
        while not self._closed.wait(self._pause):
            beat, place = beat + 1, self._place
            with contextlib.suppress(Exception):  # then nothing is heard of process 0, and that counts
                self._peers.exchange(self._last_words or Notice(place.marks, place.name, beat))
        if not self._has_failed:  # else the others are to notice
            with contextlib.suppress(Exception):
                self._peers.exchange(None)

    def _leave(self, why: str, silent: Sequence[int], raised: str = "") -> NoReturn:
        """Report, and end this process.

        Args:
            silent: those of the others that do not answer.
            raised: the error, with its traceback.
        """
        self._leaving.acquire()  # never released: another thread waits here for the end
        faulthandler.dump_traceback_later(_REPORT_SECONDS, exit=True, file=2)  # for a disk that hangs
        peers = self._peers
        if not silent and peers.count > 1:
            self._hear_last_words()
        fault = peers.fault(silent)
        head = f"process {peers.rank} of {peers.count}, {self._place.name}: {why}"
        if peers.count > 1:
            head += f"; {', '.join([*map(self._named, fault.ranks), fault.what])}"
        stacks = [
            f"process {rank} was in:\n{notice.stack}"
            for rank in fault.ranks or range(peers.count)
            if rank != peers.rank and (notice := peers.notices.get(rank)) is not None and notice.stack
        ]
        own = raised or f"process {peers.rank} was in:\n{_stack(_main_frame())}"
        os.write(2, "\n".join([head, *(stacks or [own])]).encode())
        report_fault(self._faults, peers.rank, "\n".join([head, *stacks, own, *self._other_stacks()]))
        if peers.rank == 0:
            time.sleep(0.5)  # where the others read; without it they go at once, and have not reported
        end_at_once(f"exit code {STUCK}; see {self._faults}", STUCK)

    def _hear_last_words(self) -> None:
        """Say where this process hangs, and wait for what the others say of themselves."""
        frame = _main_frame()
        waits = frame.f_globals.get("__name__", "").partition(".")[0] == "jax"
        self._last_words = Notice(self._place.marks, self._place.name, -1, waits, _stack(frame))
        deadline, rounds = time.monotonic() + self._patience, self._peers.rounds
        while time.monotonic() < deadline:
            if self._peers.rounds > rounds + 1 and all(notice.stack for notice in self._peers.notices.values()):
                return
            time.sleep(0.1)

    def _other_stacks(self) -> list[str]:
        known = {thread.ident: thread for thread in threading.enumerate()}
        left_out = [threading.main_thread(), *self._threads]
        frames = [(known.get(ident), frame) for ident, frame in sys._current_frames().items()]
        return [
            f"thread {thread.name if thread else 'of no name'}:\n{_stack(frame)}"
            for thread, frame in frames
            if thread not in left_out
        ]

    def _named(self, rank: int) -> str:
        notice = self._peers.notices.get(rank)
        return f"process {rank}" if notice is None else f"process {rank}, {notice.place}"


_watching: Watchdog | None = None


def report_fault(faults: epath.Path, rank: int, text: str) -> None:
    """Add to what a process has to report, with the time in UTC."""
    with contextlib.suppress(OSError):
        faults.mkdir(parents=True, exist_ok=True)
        file = GrowingFile(faults / f"process_{rank:05}.txt")
        file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}")
        file.close()


def tell_supervisor(rank: int = 0, count: int = 1, place: str = "") -> None:
    """Say to the process that supervises this one, if there is one, where this is: until the next time, which must come
    soon. Without a place: it may be silent from now on."""
    global _supervisor
    if _supervisor is None:
        return
    line = f"{rank} {count} {place}\n" if place else "\n"
    try:
        os.write(_supervisor, line.encode())
    except BlockingIOError:  # it is stopped, and the pipe full
        pass
    except BrokenPipeError:  # it is gone, and nobody would pass signals on
        _supervisor = None
        os.kill(os.getpid(), signal.SIGTERM)


def _main_frame() -> FrameType:
    return sys._current_frames()[threading.main_thread().ident or 0]


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame))
