"""Apache Beam makes the elements of passes, each pass as a pipeline: on this machine, or by an engine of many machines.
Knows nothing of what they make.

Beam is given numbers, and its workers write files; whether an element is made is seen by its file alone. So Beam may
make elements again, or twice at once, and what a pipeline that failed has left is asked for by the next."""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from etils import epath

from llama_jax.core.errors import CannotGoOnError, UserError, of_the_machine
from llama_jax.core.files import is_remote, write_whole
from llama_jax.data.preparation.job import Count, Job, Pass, Progress
from llama_jax.data.preparation.runners.beam_options import BeamOptions
from llama_jax.data.preparation.runners.parent import end_with_parent

_MOST_FAILURES = 3
"""How many pipelines in a row may fail, none of which has made an element."""
_SECONDS_TO_CANCEL = 60.0
_SECONDS_TO_FAIL = 3.0
_WORKER_DIED = 70  # the exit code of a submission


class BeamRunner:
    """A `Runner` by Apache Beam.

    Args:
        job: The work.
        options: How Beam is to be run.
    """

    def __init__(self, job: Job, options: BeamOptions) -> None:
        self._job, self._options = job, options
        self._address: _Address | None = None
        self._submission: _Submission | None = None

    def __enter__(self) -> "BeamRunner":
        descriptor, self._log = tempfile.mkstemp(prefix="llama_jax-beam-", suffix=".log")
        os.close(descriptor)
        if not self._options.is_local:
            print(f"Beam writes its log to {self._log}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._options.is_local:
            Path(self._log).unlink()

    def made(self, task: Pass, numbers: Sequence[int], progress: Progress) -> Iterator[int]:
        """See `Runner.made`."""
        for path in self._refusals():
            path.unlink()  # of an earlier command
        self._address = self._address or _Address.of(self._job)
        waiting, failures = set(numbers), 0
        while waiting:
            before = len(waiting)
            paths = [(number, os.fspath(task.done(number))) for number in sorted(waiting)]
            elements = _Elements(task.title, paths, task.work, self._address)
            self._submission = submission = _Submission(self._options, elements, self._log)
            for number in self._followed(submission, task, waiting, progress):
                waiting.remove(number)
                yield number
            self._end()
            failures = 0 if len(waiting) < before else failures + 1
            if waiting and failures == _MOST_FAILURES:
                raise submission.error()

    def _end(self) -> None:
        if self._submission is not None:
            self._submission.close()
            self._submission = None

    def _followed(
        self, submission: "_Submission", task: Pass, numbers: Collection[int], progress: Progress
    ) -> Iterator[int]:
        """Elements of a pipeline as their files appear, until it has ended."""
        least = 10.0 if is_remote(self._job.directory) else 0.5
        waiting, has_ended, next_look = set(numbers), False, time.monotonic() + least
        while not has_ended:
            has_ended = submission.has_ended(seconds=0.1)
            progress.tick()
            if (started := time.monotonic()) < next_look and not has_ended:
                continue
            for path in self._refusals():
                kind, message = json.loads(path.read_bytes())
                path.unlink()
                raise {each.__name__: each for each in (UserError, CannotGoOnError)}[kind](message)
            for number in sorted(waiting.difference(task.missing())):
                waiting.remove(number)
                progress.count(task.amounts[number], 0, 0)
                yield number
            next_look = time.monotonic() + max(least, 10 * (time.monotonic() - started))  # of very many files

    def _refusals(self) -> list[epath.Path]:
        return sorted(self._job.progress.glob("refused-*.json"))


class _Address(NamedTuple):
    """Where workers find the job. It may be too large to be part of a pipeline."""

    path: str
    sha256: str
    """Of the file, since what is unpickled may do anything."""

    @classmethod
    def of(cls, job: Job) -> "_Address":
        """Write the job where its workers write, too."""
        content = pickle.dumps(job)
        sha256 = hashlib.sha256(content).hexdigest()
        path = job.progress / f"job-{sha256[:16]}.pickle"  # a pipeline of an earlier command may still read its own
        write_whole(path, content)
        return cls(os.fspath(path), sha256)


_loading = threading.Lock()


def _job(address: _Address) -> Job:
    with _loading:  # the threads of a worker share one
        return _loaded(address)


@functools.lru_cache(1)
def _loaded(address: _Address) -> Job:
    content = epath.Path(address.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != address.sha256:
        raise UserError(f"{address.path}: was changed, or belongs to another command; run the command again")
    return pickle.loads(content)


class _Elements(NamedTuple):
    """What a pipeline is to make."""

    title: str
    numbers: list[tuple[int, str]]
    """Of each element its number, and the file that says that it is made."""
    work: Callable[[Job, int, Count], None]
    address: _Address


def _make(element: tuple[int, str], work: Callable[[Job, int, Count], None], address: _Address) -> None:
    """Make an element, in a worker. What no repetition changes is told through a file, since engines repeat."""
    number, done = element
    if epath.Path(done).exists():
        return
    try:
        work(_job(address), number, _no_count)
    except Exception as error:
        known = error if isinstance(error, UserError | CannotGoOnError) else of_the_machine(error)
        if known is None:
            raise
        content = json.dumps([type(known).__name__, str(known)])
        write_whole(epath.Path(address.path).parent / f"refused-{number:05}.json", content)


def _no_count(documents: int, text_bytes: int, tokens: int) -> None:
    """Beam's workers cannot be listened to; elements are counted when they are made."""


class _Submission:
    """A process that gives Beam one pipeline and waits for it, so that whatever Beam does, starts and prints is apart
    from this process, and can be ended.

    Args:
        options: How Beam is to be run.
        elements: What to make.
        log: Local file for what Beam prints.
    """

    def __init__(self, options: BeamOptions, elements: _Elements, log: str) -> None:
        self._is_local = options.is_local
        self._connection, other = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_submit, args=(options, elements, other, log)
        )
        self._process.start()
        other.close()
        self._failure: str | None = None

    def has_ended(self, seconds: float) -> bool:
        """Whether the pipeline has ended, well or not, after that time at most."""
        if not multiprocessing.connection.wait([self._connection, self._process.sentinel], seconds):
            return False
        with contextlib.suppress(EOFError, OSError):
            self._failure = self._connection.recv()
        self._process.join()
        return True

    def error(self) -> Exception:
        """Why the pipeline has failed."""
        if self._process.exitcode == 0 and self._failure is None:
            return CannotGoOnError("Beam's pipeline has ended, and not all of its elements are made; run it again")
        if self._failure is None:
            return CannotGoOnError(
                "a worker process of Beam died, perhaps for lack of memory; run the same command to resume, with fewer "
                "workers if need be"
            )
        return RuntimeError(f"Beam's pipeline failed:\n{self._failure}")

    def close(self) -> None:
        """End what is left of it: at once, with all that it has started, where that is on this machine; otherwise it
        is asked to cancel the pipeline first."""
        assert self._process.pid is not None
        if not self._is_local:
            self._process.terminate()
            self._process.join(_SECONDS_TO_CANCEL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # where it has not got as far as a group of its own
        self._process.join()
        self._connection.close()


def _submit(options: BeamOptions, elements: _Elements, connection: Connection, log: str) -> None:
    """Run a pipeline in this process, which is there for nothing else; sends what goes wrong."""
    os.setpgid(0, 0)  # the terminal tells the parent of Ctrl-C, which ends this group
    with Path(log).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    signal.signal(signal.SIGTERM, _leave)
    end_with_parent(functools.partial(os.killpg, 0, signal.SIGKILL))
    if options.is_local:
        threading.excepthook = _end_with_a_thread

    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    result: Any = None
    try:
        pipeline = apache_beam.Pipeline(options=PipelineOptions(options.arguments))
        # Without Reshuffle one worker might get all that was created together.
        numbers = pipeline | apache_beam.Create(elements.numbers) | apache_beam.Reshuffle()
        made = apache_beam.Map(_make, elements.work, elements.address)
        _ = numbers | elements.title >> made
        result = pipeline.run()
        result.wait_until_finish()
    except SystemExit:
        if result is not None:
            result.cancel()
    except Exception:
        connection.send(traceback.format_exc())
    os._exit(0)  # threads of Beam may be waiting for each other


def _leave(*_: object) -> NoReturn:
    raise SystemExit


def _end_with_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Where a process of its workers dies, Beam waits for ever: of it can be seen only that a thread fails."""
    threading.__excepthook__(failed)
    time.sleep(_SECONDS_TO_FAIL)  # a pipeline that fails says so itself
    os._exit(_WORKER_DIED)
