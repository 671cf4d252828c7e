"""Processes that read streams for a loader, each those with number modulo the count of processes equal to its own.

They hold nothing that cannot be read again: they are killed without a word, and leave by themselves when the process
that started them is gone. This module is also the program they run.
"""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.data.rows.positions import StreamPositions
from llama_jax.data.rows.streams import BatchPart, Pipeline, Share, Streams

_PROGRAM = "import sys; from llama_jax.data.rows.workers import serve; serve(int(sys.argv[1]))"
_SECONDS_TO_DIE = 5.0


class StreamProcesses:
    """Reads like `Streams`, in several processes; what is asked first is answered first.

    Args:
        count: Number of processes. They are started at once, and prepare themselves meanwhile.
    """

    def __init__(self, count: int) -> None:
        self._workers = [_Worker(number, count) for number in range(count)]
        self._asked: list[list[_Worker]] = []
        self._closed = False

    def begin(self, pipeline: Pipeline, positions: StreamPositions) -> None:
        """Tell the processes what to read; see `Streams`."""
        for worker in self._workers:
            mine = {stream: position for stream, position in positions.items() if self._worker_of(stream) is worker}
            worker.send((pipeline, mine))

    def ask(self, shares: Sequence[Share]) -> list[list[int]]:
        """Ask for rows, before the answer to the last question is there or after it.

        Returns:
            How the answer will be parted: the places in `shares` that each part covers, in its order.
        """
        places: dict[_Worker, list[int]] = {}
        for place, share in enumerate(shares):
            places.setdefault(self._worker_of(share.stream), []).append(place)
        for worker, mine in places.items():
            worker.send([shares[place] for place in mine])
        self._asked.append(list(places))
        return list(places.values())

    def answer(self) -> list[BatchPart]:
        """The parts of the oldest question that has not been answered.

        Raises:
            UserError: as `Streams.read`.
            CannotGoOnError: a process died, or failed for another reason.
        """
        return [worker.receive() for worker in self._asked.pop(0)]

    def close(self) -> None:
        """End the processes; whoever waits for an answer gets an error."""
        for worker in self._workers:
            worker.kill()

    def _worker_of(self, stream: int) -> "_Worker":
        return self._workers[stream % len(self._workers)]


class _Worker:
    """One process, seen from the one that started it."""

    def __init__(self, number: int, count: int) -> None:
        self._name = f"data.workers: reader process {number} of {count}"
        self._connection, theirs = Pipe()
        # Not by `multiprocessing`, whose processes import the main module again, and with it all of JAX.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the run, which reads on until it has saved
            )

    def send(self, message: Any) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(message))
        except OSError:
            raise self._death() from None

    def receive(self) -> BatchPart:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise CannotGoOnError(f"{self._name}: {answer}")
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _death(self) -> CannotGoOnError:
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_SECONDS_TO_DIE)
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return CannotGoOnError(f"{self._name} {how}; run the same command to resume from the last checkpoint")


def serve(descriptor: int) -> None:
    """The life of a reader process: what to read, then questions and answers until the other end is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _leave_with_the_parent(descriptor)
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        streams: Streams | None = None
        while True:
            message = connection.recv_bytes()
            try:
                if streams is None:
                    streams = Streams(*pickle.loads(message))
                    continue
                answer = streams.read(pickle.loads(message))
            except UserError as error:
                answer = error
            except Exception as error:
                answer = f"{type(error).__name__}: {' '.join(str(error).split())}"
            connection.send(answer)


def _leave_with_the_parent(descriptor: int) -> None:
    """End this process when the other end is closed, even while it waits for slow storage."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hang-ups are always reported

    def wait() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()
