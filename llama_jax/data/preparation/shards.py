"""The work of `prepare`: documents, dealt in consecutive ranges to processes, become shards of token ids.

Each range is one shard and is acknowledged by a small file once the shard is whole, so that work that is stopped
anywhere goes on without doubt; what is written depends on the documents and the settings alone. Knows the processes,
not the command line."""

import contextlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from llama_jax.core.arrays import Int
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.files import is_remote, write_whole
from llama_jax.data.preparation.cleaning import Cleaning, cleaned, text_hash
from llama_jax.data.sources.documents import BadRecordError, Documents
from llama_jax.data.sources.prepared import Shard, ShardWriter, id_dtype, shard_name
from llama_jax.data.tokenizers import Tokenizer

PROGRESS = "progress"
"""Folder of the acknowledgements within the prepared directory, deleted at the end."""

_SAMPLED_DOCUMENTS = 1000
_COUNTED_DOCUMENTS = 32  # between two looks at what the processes share


class Stopped(Exception):
    """The work was asked to stop; the shard it was at will be made anew."""


@dataclass(frozen=True)
class Job:
    """What every process needs. Pickled once for each."""

    documents: Documents
    tokenizer: Tokenizer
    cleaning: Cleaning
    bounds: Sequence[int]
    """Number of the first document of each shard, and of the document after the last."""
    directory: epath.Path
    fail_on_bad: bool
    """A bad record ends the work instead of being left out."""

    @property
    def shards(self) -> int:
        return len(self.bounds) - 1


class Acknowledged(NamedTuple):
    """A shard that is whole."""

    shard: Shard
    dropped: list[dict[str, Any]]
    """Documents left out, in order: `document`, `reason`, and what else is known."""

    @property
    def bad(self) -> list[dict[str, Any]]:
        """Those whose record could not be used, in contrast to what cleaning left out."""
        return [each for each in self.dropped if "where" in each]


class Duplicates(NamedTuple):
    """Documents that are the same as an earlier one."""

    documents: Int[np.ndarray, "duplicates"]
    """Their numbers, ascending."""
    first: Int[np.ndarray, "duplicates"]
    """Of each, the number of the first document that is the same."""

    def within(self, start: int, stop: int) -> "Duplicates":
        """Those with numbers from `start` to before `stop`."""
        left, right = np.searchsorted(self.documents, (start, stop))
        return Duplicates(self.documents[left:right], self.first[left:right])


NO_DUPLICATES = Duplicates(np.zeros(0, np.int64), np.zeros(0, np.int64))


def shard_bounds(documents: Documents, megabytes: float) -> list[int]:
    """Cut the documents into consecutive ranges of about so many megabytes of text, judged by a thousand of them."""
    count = len(documents)
    sizes = []
    for index in np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_DOCUMENTS)).astype(np.int64)):
        try:
            sizes.append(len(as_text(documents[int(index)]).encode()))
        except (BadRecordError, UnicodeEncodeError):
            continue
    shards = -(-count * (sum(sizes) / max(1, len(sizes))) // (megabytes * 1e6))
    shards = min(count, max(1, int(shards)))
    return [count * number // shards for number in range(shards + 1)]


def as_text(document: Any) -> str:
    """The document, which must be a text.

    Raises:
        UserError: it is one of token ids.
    """
    if not isinstance(document, str):
        raise UserError("data.source: holds token ids; it has been prepared already, and prepare takes text")
    return document


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


class _Worker:
    """The work on one shard after another, within one process."""

    def __init__(self, job: Job, meter: Meter) -> None:
        self._job = job
        self._meter = meter

    def hash_shard(self, number: int) -> int:
        """Write the hashes of a shard's documents, zeros for those that cannot be used."""
        start, stop = self._job.bounds[number], self._job.bounds[number + 1]
        hashes = bytearray()
        for _, text, bad in self._texts(start, stop, self._job.cleaning):
            hashes += bytes(16) if bad else text_hash(text)
        stored = io.BytesIO()
        np.save(stored, np.frombuffer(hashes, "<u8").reshape(-1, 2))
        write_whole(hashes_path(self._job.directory, number), stored.getvalue())
        return number

    def write_shard(self, number: int, duplicates: Duplicates) -> int:
        """Write a shard and its acknowledgement."""
        job = self._job
        name = shard_name(number, job.shards)
        first = dict(zip(duplicates.documents.tolist(), duplicates.first.tolist(), strict=True))
        dropped: list[dict[str, Any]] = []
        final = job.directory / name
        with _local_file(final) as path, ShardWriter(path, id_dtype(job.tokenizer.vocab_size)) as shard_file:
            for index, text, bad in self._texts(job.bounds[number], job.bounds[number + 1], job.cleaning, first):
                if bad is not None:
                    dropped.append({"document": index, **bad})
                    continue
                ids = job.tokenizer.encode(text, bos=True, eos=True)
                shard_file.write(ids, len(text.encode()))
                self._tokens += len(ids)
            shard = shard_file.finish(name)
            _move(path, final)
        content = json.dumps({"shard": asdict(shard), "dropped": dropped}, ensure_ascii=False)
        write_whole(acknowledgement_path(job.directory, number), content)
        return number

    def _texts(
        self, start: int, stop: int, cleaning: Cleaning, first: dict[int, int] | None = None
    ) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
        """(number, clean text, why it is left out) of each document; counts what passes.

        Args:
            first: For the numbers of documents to leave out as duplicates, what they are the same as.
        """
        documents = text_bytes = self._tokens = 0
        for index in range(start, stop):
            text, bad = "", None
            try:
                text = cleaned(as_text(self._job.documents[index]))
                text_bytes += len(text.encode())
                if reason := cleaning.reason_to_drop(text):
                    bad = {"reason": reason, "characters": len(text)}
                elif first and index in first:
                    bad = {"reason": "duplicate", "of": first[index]}
            except BadRecordError as error:
                bad = self._bad(error)
            except UnicodeEncodeError as error:
                message = f"holds half a surrogate pair at character {error.start}"
                bad = self._bad(BadRecordError("surrogate", f"document {index}", message))
            yield index, text, bad
            documents += 1
            if documents == _COUNTED_DOCUMENTS or index == stop - 1:
                self._meter.add(documents, text_bytes, self._tokens)
                documents = text_bytes = self._tokens = 0

    def _bad(self, error: BadRecordError) -> dict[str, Any]:
        if self._job.fail_on_bad:
            raise UserError(f"{error} (data.bad_records: skip leaves such documents out)") from None
        return {"reason": error.reason, "where": error.where, "message": error.message}


@contextlib.contextmanager
def _local_file(path: epath.Path) -> Iterator[Path]:
    """A local file to write for a path that may be remote, in the same folder if it is not; removed if left over."""
    folder = tempfile.gettempdir() if is_remote(path) else os.fspath(path.parent)
    # Named for the process: one that outlives its parent for a moment must not write into another's file.
    temporary = Path(folder) / f"{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _move(path: Path, target: epath.Path) -> None:
    if not is_remote(target):
        path.replace(target)
        return
    with path.open("rb") as source, target.open("wb") as copy:  # an object appears when its upload is complete
        shutil.copyfileobj(source, copy, 2**24)


def hashes_path(directory: epath.Path, number: int) -> epath.Path:
    """Where the hashes of a shard's documents are."""
    return directory / PROGRESS / f"hashes-{number:05}.npy"


def acknowledgement_path(directory: epath.Path, number: int) -> epath.Path:
    """The file that says that a shard is whole."""
    return directory / PROGRESS / f"shard-{number:05}.json"


def acknowledged(directory: epath.Path, number: int) -> Acknowledged:
    """What the acknowledgement of a shard says."""
    values = json.loads(acknowledgement_path(directory, number).read_bytes())
    return Acknowledged(Shard(**values["shard"]), values["dropped"])


def duplicates_of(hashes: Sequence[Callable[[], Int[np.ndarray, "documents two"]]], at_once: int) -> Duplicates:
    """Every document that has the hash of an earlier one.

    Args:
        hashes: For each range of documents, in order, a function that loads their hashes.
        at_once: Documents to compare at once, at 40 bytes each; their hashes are loaded once for every so many.
    """
    counts = [len(load()) for load in hashes]
    parts = max(1, -(-sum(counts) // at_once))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for part in range(parts):
        pieces, numbers, start = [], [], 0
        for load, count in zip(hashes, counts, strict=True):
            each = load()
            chosen = np.flatnonzero((each[:, 0] % np.uint64(parts) == part) & each.any(axis=1))
            pieces.append(each[chosen])
            numbers.append(chosen + start)
            start += count
        values, documents = np.concatenate(pieces), np.concatenate(numbers)
        order = np.lexsort((values[:, 1], values[:, 0]))  # stable: of equal ones the first document comes first
        values, documents = values[order], documents[order]
        same = np.zeros(len(values), bool)
        same[1:] = (values[1:] == values[:-1]).all(axis=1)
        firsts = documents[~same][np.cumsum(~same) - 1]
        found.append((documents[same], firsts[same]))
    documents, firsts = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    order = np.argsort(documents)
    return Duplicates(documents[order], firsts[order])


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
        self._ahead = count + 1  # a task more than are at work, so that none waits; not all, for their duplicates
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
        yield from self._results(((_hash_shard, number) for number in numbers), tick)

    def write_shards(self, numbers: Iterable[int], duplicates: Duplicates, tick: Callable[[], None]) -> Iterator[int]:
        """Write shards; gives the number of each when it is acknowledged. `tick` is called often."""
        bounds = self._bounds
        tasks = ((_write_shard, number, duplicates.within(*bounds[number : number + 2])) for number in numbers)
        yield from self._results(tasks, tick)

    def _results(self, tasks: Iterator[tuple[Any, ...]], tick: Callable[[], None]) -> Iterator[int]:
        pending: set[Future[int]] = set()
        while True:
            while len(pending) < self._ahead and (task := next(tasks, None)) is not None:
                pending.add(self._executor.submit(*task))
            if not pending:
                return
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            tick()
            for future in done:
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise CannotGoOnError(
                        "a worker process died, perhaps for want of memory; the same command goes on, with fewer "
                        "--workers if need be"
                    ) from None


_worker: _Worker


def _start(job: Job, meter: Meter, is_process: bool) -> None:
    """Make this process ready for `_hash_shard` and `_write_shard`."""
    global _worker
    _worker = _Worker(job, meter)
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


def _hash_shard(number: int) -> int:
    return _worker.hash_shard(number)


def _write_shard(number: int, duplicates: Duplicates) -> int:
    return _worker.write_shard(number, duplicates)


def counts_by_reason(dropped: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many documents were left out for each reason, by name."""
    return dict(sorted(Counter(each["reason"] for each in dropped).items()))
