"""Processes that share the shards of a corpus among them."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from llama_jax.core.errors import CannotGoOnError
from llama_jax.data.preparation.duplicates import Duplicates
from llama_jax.data.preparation.shards import Job, ShardWork


class Stopped(Exception):
    """The work was asked to stop; the shard it was at will be made again."""


class Meter:
    """What all processes have done since the work began, and whether to stop."""

    def __init__(self) -> None:
        self.counts = multiprocessing.get_context("spawn").Array("q", 4)

    def add(self, documents: int, text_bytes: int, tokens: int) -> None:
        """Count; called every now and then.

        Raises:
            Stopped: the work is to stop.
        """
        with self.counts.get_lock():
            for place, amount in enumerate((documents, text_bytes, tokens)):
                self.counts[place] += amount
            stop = self.counts[3]
        if stop:
            raise Stopped

    def read(self) -> tuple[int, int, int]:
        """Documents, bytes of text and tokens."""
        documents, text_bytes, tokens, _ = self.counts[:]
        return documents, text_bytes, tokens

    def stop(self) -> None:
        """Make every process stop at its next document but a few."""
        self.counts[3] = 1


class Workers:
    """Processes that share the shards among them; a context manager.

    Args:
        job: The work.
        count: Number of processes; 0 works in a thread of this one.
        meter: Counts what they do.
    """

    def __init__(self, job: Job, count: int, meter: Meter) -> None:
        self._meter = meter
        self._bounds = job.bounds
        # A task more than are at work, so that none waits; not all, for their duplicates.
        self._most_pending = count + 1
        self._executor: Executor
        if count == 0:
            self._executor = ThreadPoolExecutor(1, initializer=_start, initargs=(job, meter, False))
        else:
            self._executor = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), initializer=_start, initargs=(job, meter, True)
            )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def hash_shards(self, numbers: Iterable[int], tick: Callable[[], None]) -> Iterator[int]:
        """Write the hashes of shards; gives the number of each when it is done. `tick` is called often."""
        return self._results(((ShardWork.hash_shard, number) for number in numbers), tick)

    def write_shards(self, numbers: Iterable[int], duplicates: Duplicates, tick: Callable[[], None]) -> Iterator[int]:
        """Write shards; gives the number of each when it is acknowledged. `tick` is called often."""
        parts = ((number, duplicates.within(*self._bounds[number : number + 2])) for number in numbers)
        return self._results(((ShardWork.write_shard, *part) for part in parts), tick)

    def _results(self, tasks: Iterator[tuple[Any, ...]], tick: Callable[[], None]) -> Iterator[int]:
        pending: set[Future[int]] = set()
        while True:
            while len(pending) < self._most_pending and (task := next(tasks, None)) is not None:
                pending.add(self._executor.submit(_done, *task))
            if not pending:
                return
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            tick()
            for future in done:
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise CannotGoOnError(
                        "a worker process died, perhaps for lack of memory; run the same command to resume, "
                        "with fewer --workers if need be"
                    ) from None


_worker: ShardWork


def _start(job: Job, meter: Meter, is_process: bool) -> None:
    """Make this process ready for `_done`."""
    global _worker
    _worker = ShardWork(job, meter.add)
    if is_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent says when to stop
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot say so, and its workers would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _done(work: Callable[..., int], *arguments: Any) -> int:
    return work(_worker, *arguments)
