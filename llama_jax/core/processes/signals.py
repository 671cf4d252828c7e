"""SIGTERM and Ctrl-C: as a request to stop, or as the end. Knows no JAX, and nothing of what is to be saved."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from llama_jax.core.errors import SavedAfterSignal

_SECONDS_IN_A_LIBRARY = 1.0
_SECONDS_OF_ONE_REQUEST = 0.1
_SECONDS_TO_TIDY_UP = 10.0


@contextlib.contextmanager
def _heard(handlers: Mapping[int, Any], listen: Callable[[socket.socket], None]) -> Iterator[None]:
    """Hear signals in this block, on the main thread; elsewhere, nothing.

    Python calls its handlers between two lines of the main thread, which compiling keeps waiting for minutes; a thread
    that reads the numbers of the signals hears them at once.

    Args:
        handlers: what Python is to call, by signal.
        listen: in a thread of its own; receives the numbers, a byte each, until there are no more.
    """
    if threading.current_thread() is not threading.main_thread() or not handlers:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def run() -> None:
        with reader:
            listen(reader)

    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    previous_writer = signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=run, name="signals", daemon=True).start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_writer)
        writer.close()


class StopSignal(contextlib.ExitStack):
    """Whether this process was asked to stop. Used as a context manager on the main thread; elsewhere it hears nothing.

    The first signal is a request, answered by a line at once; a second one ends the process at once, even while it
    compiles. Two that come together are one: `timeout` and others tell first a process, then the group it is in.
    """

    def __init__(
        self,
        numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
        on_request: Callable[[], None] = lambda: None,
        says: str = "saving; again ends at once",
    ) -> None:
        """
        Args:
            numbers: the signals that are a request.
            on_request: called once with the first of them, from a thread of its own.
            says: the line that answers it.
        """
        super().__init__()
        self._says = says
        self._numbers = numbers
        self._on_request = on_request
        self._received = threading.Event()

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received.is_set()

    def __enter__(self) -> "StopSignal":
        self.enter_context(_heard(dict.fromkeys(self._numbers, lambda *_: None), self._listen))
        return self

    def _listen(self, signals: socket.socket) -> None:
        first = 0.0
        while number := signals.recv(1):
            if self.received:
                if time.monotonic() - first < _SECONDS_OF_ONE_REQUEST:
                    continue
                end_at_once("ended at once; nothing more is saved", 128 + number[0])
            first = time.monotonic()
            self._received.set()
            # Whole: between the two writes of `print` the main thread may end the process.
            sys.stderr.write(f"{self._says}\n")
            sys.stderr.flush()
            self._on_request()


def run_first(command: Sequence[str]) -> int:
    """Run another command to its end, and tell it of a signal to this process; returns its exit code.

    Raises:
        SavedAfterSignal: a signal came.
    """
    process = subprocess.Popen(command)
    with StopSignal(on_request=process.terminate, says="stopping it; again ends at once") as signal:
        code = process.wait()
    if signal.received:
        raise SavedAfterSignal("interrupted; run the same command to go on")
    return code


@contextlib.contextmanager
def passed_on(pass_on: Callable[[int], None]) -> Iterator[None]:
    """Pass on in this block whatever asks this process to end, but for what it ignores, such as Ctrl-C where a shell
    started it in the background.

    Args:
        pass_on: takes the number of the signal, in a thread of its own.
    """

    def listen(signals: socket.socket) -> None:
        while number := signals.recv(1):
            pass_on(number[0])

    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heard = [number for number in asking if signal.getsignal(number) is not signal.SIG_IGN]
    with _heard(dict.fromkeys(heard, lambda *_: None), listen):
        yield


_tidies_up = threading.Event()


def let_work_tidy_up() -> None:
    """Let Ctrl-C be raised from now on; see `ending_on_interrupt`."""
    _tidies_up.set()


@contextlib.contextmanager
def ending_on_interrupt() -> Iterator[threading.Event]:
    """Let Ctrl-C end this process in the block, with a line and exit code 130.

    At first that is at once: modules are imported and backends looked for, by libraries some of which swallow whatever
    is raised. After `let_work_tidy_up` it is raised as `KeyboardInterrupt`, and a second one ends the process at once.
    So does the first where nothing comes of it: while a library compiles or computes nothing is raised, and what is
    raised in a function that a library or the garbage collector has called may go no further.

    Gives whether it was raised.
    """
    raised = threading.Event()
    _tidies_up.clear()
    otherwise = sys.unraisablehook

    def interrupt(*_: object) -> None:
        if not _tidies_up.is_set():
            end_at_once("interrupted", 130)
        raised.set()
        raise KeyboardInterrupt

    def listen(signals: socket.socket) -> None:
        if not signals.recv(1):
            return
        for seconds in (_SECONDS_IN_A_LIBRARY, _SECONDS_TO_TIDY_UP):
            signals.settimeout(seconds)
            try:
                if not signals.recv(1):
                    return  # the block has ended
                break
            except TimeoutError:
                if not raised.is_set():
                    break
        end_at_once("interrupted", 130)

    def went_no_further(what: Any) -> None:
        if not raised.is_set():
            otherwise(what)
        elif issubclass(what.exc_type, KeyboardInterrupt):
            end_at_once("interrupted", 130)
        # The others are of what was left half made: there is nothing to say of it.

    # What a shell starts in the background ignores Ctrl-C.
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sys.unraisablehook = went_no_further
    try:
        with _heard({signal.SIGINT: interrupt} if hears else {}, listen):
            yield raised
    finally:
        if not raised.is_set():
            sys.unraisablehook = otherwise


class Interruptions(contextlib.ExitStack):
    """Ctrl-C in a program that reads from a terminal and answers. Used as a context manager on the main thread: raised
    as `KeyboardInterrupt` where it reads, and only noted in a block of `noted`, so that what computes is left whole."""

    def __init__(self, tidy_up: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            tidy_up: called before a sudden end, from a thread of its own.
        """
        super().__init__()
        self._tidy_up = tidy_up
        self._noted: threading.Event | None = None
        self._first = 0.0

    def __enter__(self) -> "Interruptions":
        self.enter_context(_heard({signal.SIGINT: self._interrupt}, self._listen))
        return self

    @contextlib.contextmanager
    def noted(self) -> Iterator[threading.Event]:
        """Gives what is set once Ctrl-C has come. One that comes a second later, when nothing has come of it, ends the
        process at once."""
        self._noted = noted = threading.Event()
        try:
            yield noted
        finally:
            self._noted = None

    def _interrupt(self, *_: object) -> None:
        if self._noted is None:
            raise KeyboardInterrupt

    def _listen(self, signals: socket.socket) -> None:
        while signals.recv(1):
            if (noted := self._noted) is None:
                continue
            if not noted.is_set():
                self._first = time.monotonic()
                noted.set()
            elif time.monotonic() - self._first > _SECONDS_IN_A_LIBRARY:
                self._tidy_up()
                end_at_once("interrupted", 130)


def remove_at_a_sudden_end(directory: os.PathLike[str]) -> None:
    """Remove a local directory, if it is still there, when a signal ends this process at once."""
    _unfinished.add(os.fspath(directory))


_unfinished: set[str] = set()


def end_at_once(line: str, code: int) -> NoReturn:
    """End this process with a line. Nothing is waited for, and only what `remove_at_a_sudden_end` names removed."""
    for directory in _unfinished:
        shutil.rmtree(directory, ignore_errors=True)
    os.write(2, f"{line}\n".encode())  # not by `print`, which may wait for the main thread
    os._exit(code)
