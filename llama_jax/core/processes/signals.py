"""SIGTERM and Ctrl-C as a request to stop. Knows no JAX, and nothing of what is to be saved."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any


class StopSignal:
    """Whether this process was asked to stop. Used as a context manager on the main thread; elsewhere it hears nothing.

    The first signal is a request; a second one ends the process at once, even while it compiles.
    """

    def __init__(
        self,
        numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            numbers: the signals that are a request.
            on_request: called once with the first of them, from a thread of its own.
        """
        self._numbers = numbers
        self._on_request = on_request
        self._received = threading.Event()
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received.is_set()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._previous[number] = signal.signal(number, lambda *_: None)
            # Python calls its handlers between two lines of the main thread, which compiling keeps waiting for
            # minutes; a thread that reads the numbers of the signals hears them at once.
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_writer = signal.set_wakeup_fd(self._writer.fileno())
            threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._previous_writer)
            self._writer.close()

    def _listen(self, reader: socket.socket) -> None:
        with reader:
            while number := reader.recv(1):
                if self._received.is_set():
                    os._exit(128 + number[0])
                self._received.set()
                self._on_request()
