"""A thread that prepares what will be asked for next."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Prefetcher(Generic[_T]):
    """Runs an iterator in a thread, at most `limit` items ahead of whoever asks."""

    def __init__(self, items: Iterator[_T], limit: int) -> None:
        self._items = items
        self._limit = limit
        self._ready: deque[_T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        # A daemon, so that a reader stuck in slow storage cannot keep a finished process alive.
        self._thread = threading.Thread(target=self._run, name="data-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetcher[_T]":
        return self

    def __next__(self) -> _T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
            if not self._ready:
                raise self._error or StopIteration
            item = self._ready.popleft()
            self._changed.notify_all()
        return item

    def stop(self) -> None:
        """Let the thread end after the item it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait a moment for the thread to end."""
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._limit)
                    if self._closed:
                        return
            raise StopIteration
        except BaseException as error:  # the thread must not die unheard: it is raised where the batch is asked for
            with self._changed:
                self._error = None if self._closed else error
                self._changed.notify_all()
