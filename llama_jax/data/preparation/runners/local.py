"""Processes of this machine that share the elements of passes among them. Knows nothing of what they make."""

import collections
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.processes.memory import give_back_freed_memory
from llama_jax.data.preparation.job import Job, Pass, Progress
from llama_jax.data.preparation.runners.parent import end_with_parent

_MOST_DEATHS = 3
"""How many processes in a row may die before one has made an element."""
_SECONDS_BETWEEN_COUNTS = 0.2


class Stopped(Exception):
    """The work was asked to stop; the element it was at will be made again."""


class LocalRunner:
    """A `Runner` of this machine.

    Args:
        job: The work.
        processes: How many, at most; 0 works in a thread of this process.
    """

    def __init__(self, job: Job, processes: int) -> None:
        self._job, self._processes = job, processes
        self._workers: list[_Worker] = []

    def __enter__(self) -> "LocalRunner":
        give_back_freed_memory()  # of opening the source; the workers need it more
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

    def made(self, task: Pass, numbers: Sequence[int], progress: Progress) -> Iterator[int]:
        """See `Runner.made`. A process that dies is replaced, and what it was at is made again."""
        waiting = collections.deque(numbers)
        deaths = 0
        while waiting or any(worker.is_busy for worker in self._workers):
            self._assign(task, waiting)
            ready = multiprocessing.connection.wait([worker.connection for worker in self._workers], timeout=0.1)
            progress.tick()
            for worker in [each for each in self._workers if each.connection in ready]:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    deaths += 1
                    self._bury(worker, waiting, progress)
                    if deaths == _MOST_DEATHS:
                        raise CannotGoOnError(
                            "a worker process died, perhaps for lack of memory; run the same command to resume, "
                            "with fewer --workers if need be"
                        ) from None
                    continue
                if isinstance(message, BaseException):
                    raise message
                if isinstance(message, int):
                    deaths, worker.number = 0, None
                    yield message
                else:
                    worker.counted.append(message)
                    progress.count(*message)

    def _assign(self, task: Pass, waiting: collections.deque[int]) -> None:
        """Give each worker that has nothing to do an element, and start workers as long as there are more of these."""
        most = max(1, self._processes)
        while len(self._workers) < most and sum(not each.is_busy for each in self._workers) < len(waiting):
            self._workers.append(_Worker(self._job, is_process=self._processes > 0))
        for worker in self._workers:
            if waiting and not worker.is_busy:
                worker.make(task, waiting.popleft())

    def _bury(self, worker: "_Worker", waiting: collections.deque[int], progress: Progress) -> None:
        self._workers.remove(worker)
        worker.join()
        if (number := worker.number) is not None:
            print("a worker process died; what it was at is made again", flush=True)
            waiting.appendleft(number)
            for counts in worker.counted:
                progress.count(*(-amount for amount in counts))


class _Worker:
    """A process or a thread that makes one element at a time. It sends what it has counted, the number of an element
    that it has made, or the exception that kept it from that."""

    def __init__(self, job: Job, *, is_process: bool) -> None:
        self.connection, other = multiprocessing.Pipe()
        self.number: int | None = None
        """The element it is at."""
        self.counted: list[tuple[int, int, int]] = []
        """What it has said that it counted of that."""
        start = multiprocessing.get_context("spawn").Process if is_process else threading.Thread
        self._running = start(target=_serve, args=(job, other, is_process), daemon=True)
        self._running.start()
        if is_process:
            other.close()  # so that the end of the process is the end of what it sends

    @property
    def is_busy(self) -> bool:
        return self.number is not None

    def make(self, task: Pass, number: int) -> None:
        """Begin an element."""
        self.number, self.counted = number, []
        with contextlib.suppress(OSError):  # it has died, which is seen where it is listened to
            self.connection.send((task.work, number))

    def stop(self) -> None:
        """Make it stop soon; it removes what it has begun."""
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def join(self) -> None:
        """Wait for its end."""
        self._running.join()
        self.connection.close()


class _Counter:
    """Sends what is counted now and then, and hears whether to stop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._counts, self._sent = [0, 0, 0], time.monotonic()

    def __call__(self, documents: int, text_bytes: int, tokens: int) -> None:
        """A `Count`.

        Raises:
            Stopped: it is to stop.
        """
        for place, amount in enumerate((documents, text_bytes, tokens)):
            self._counts[place] += amount
        if time.monotonic() - self._sent < _SECONDS_BETWEEN_COUNTS:
            return
        self.send()
        if self._connection.poll():
            raise Stopped

    def send(self) -> None:
        """Send what was counted since the last time."""
        self._connection.send(tuple(self._counts))
        self._counts, self._sent = [0, 0, 0], time.monotonic()


def _serve(job: Job, connection: Connection, is_process: bool) -> None:
    """Make one element after another, until there is nothing more to be heard."""
    if is_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent says when to stop
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent(functools.partial(os._exit, 1))
    count = _Counter(connection)
    with contextlib.suppress(EOFError, OSError, Stopped), connection:
        while (element := connection.recv()) is not None:
            work, number = element
            try:
                work(job, number, count)
            except Stopped:
                raise
            except BaseException as error:
                connection.send(_portable(error))
                return
            count.send()
            give_back_freed_memory()  # a pass is no guide to what the next one needs
            connection.send(number)


def _portable(error: BaseException) -> BaseException:
    """The exception, with where it comes from if it is no known one, as something that can be pickled."""
    if not isinstance(error, UserError | CannotGoOnError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
