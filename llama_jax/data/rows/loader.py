"""Rows to batches: which stream gives each row of the global batch, this process's share of it, and the exact position.

The order of rows depends on the mixture and the number of streams only: any number of processes reads the same batches,
and a run may be resumed with another number of them. Independent of devices.
"""

import dataclasses
import hashlib
import itertools
import json
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.batches import TokenBatch
from llama_jax.core.errors import UserError
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.mixture import Mixture
from llama_jax.data.rows.packing import PACKING_VERSION, usable, validation_rows
from llama_jax.data.rows.positions import RowsPosition, StreamPositions, merge_positions
from llama_jax.data.rows.prefetching import Prefetcher
from llama_jax.data.rows.progress import check_dropped, progress
from llama_jax.data.rows.streams import BatchPart, Pipeline, Rows, Share, Streams
from llama_jax.data.rows.workers import StreamProcesses
from llama_jax.data.sources.bad_records import NOTES, BadRecords
from llama_jax.data.sources.documents import BadRecordError, Documents, SelectedDocuments, in_order
from llama_jax.data.tokenizers import Tokenizer


def streams_of_batch(first_row: int, batch_size: int, streams: int) -> Int[np.ndarray, "B"]:
    """Number of the stream that supplies each row of a global batch.

    Batches smaller than `streams` take the streams in turn; larger ones take the same number of consecutive rows from
    each. Either way stream s has given a row for each number below `first_row` that equals s modulo `streams`.

    Args:
        first_row: Number of rows in all batches before.
        batch_size: Rows of the global batch.
        streams: `data.streams`.

    Raises:
        UserError: neither of batch size and streams divides the other.
    """
    if batch_size < 1 or (streams % batch_size and batch_size % streams):
        raise UserError(
            f"data.streams: {streams} neither divides training.batch_size {batch_size} nor is a multiple of it; "
            "make both powers of two"
        )
    rows = np.arange(batch_size)
    return (first_row + rows) % streams if batch_size <= streams else rows // (batch_size // streams)


class Loader:
    """Training batches, prepared ahead by a thread, or by processes where `config.workers` asks for them.

    ```
    for rows, position in loader.start(position): ...
    ```

    Args:
        mixture: The training documents.
        tokenizer: Gives the ids.
        config: The data section; `validation_fraction` enters the fingerprint only.
        seed: Seed of the order of documents.
        batch_size_at: Rows of the global batch of each step, from 0.
        rows_of: Row numbers, within a global batch of the given size, that this process is to supply, in the order
            wanted; they need not be its own alone. None: all rows. A process reads the streams of these rows only. With
            several processes let no batch be smaller than `data.streams`, or a batch ramp below that hands streams from
            process to process, and the new reader must first encode what the stream has given so far.
        say: Told the first few bad records, with the batch they were met in.

    Raises:
        UserError: `data.streams` and the size of the first batch do not fit each other, or the tokenizer is not the one
            that prepared a source.
    """

    fingerprint: str
    """SHA-256 in hexadecimal of all that decides the order of rows, but for batch sizes. Only a position that was
    recorded under the same fingerprint may be given to `start`."""

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Tokenizer,
        config: DataConfig,
        seed: int,
        *,
        batch_size_at: Callable[[int], int],
        rows_of: Callable[[int], Sequence[int]] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        mixture.check_tokenizer(tokenizer)
        self._pipeline = Pipeline(mixture, tokenizer, config, seed)
        self._config = config
        self._batch_size_at = batch_size_at
        self._rows_of = range if rows_of is None else rows_of
        self._say = say
        self._said = 0
        self._readers: _InThread | StreamProcesses | None = None
        self._prefetcher: Prefetcher[tuple[Rows, RowsPosition, list[str]]] | None = None
        self.fingerprint = _fingerprint(self._pipeline)
        streams_of_batch(0, batch_size_at(0), config.streams)

    def start(self, position: RowsPosition | None = None) -> "Loader":
        """Begin after the batch that `position` was given with (or merged from); at the first batch when it is None.

        Returns:
            The loader itself, an endless iterator of `(rows, position)`: this process's rows, arrays [local rows, T],
            and the position after this batch.
        """
        self.close()
        self._readers = StreamProcesses(self._config.workers) if self._config.workers else _InThread()
        batches = self._batches(position or RowsPosition(), self._readers)
        self._prefetcher = Prefetcher(batches, self._config.prefetch_batches)
        return self

    def __iter__(self) -> Iterator[tuple[Rows, RowsPosition]]:
        return self

    def __next__(self) -> tuple[Rows, RowsPosition]:
        """The next batch; raises what preparing it raised.

        Raises:
            UserError: too many documents cannot be used, or any where `bad_records` says so.
            CannotGoOnError: a reader process died.
        """
        if self._prefetcher is None:
            raise RuntimeError("the loader gives batches between start() and close()")
        rows, position, notes = next(self._prefetcher)
        for note in notes[: NOTES - self._said]:
            self._said += 1
            more = "; further ones are only counted (dropped_records in the metrics)" * (self._said == NOTES)
            self._say(f"bad record skipped: {note}{more}")
        return rows, position

    def position_of(self, records: Sequence[Mapping[str, Any]]) -> RowsPosition:
        """One position from those that all processes recorded after the same batch; see `merge_positions`."""
        positions = []
        for position in map(RowsPosition.from_json, records):
            given = {number: _rows_given(number, position.row, self._config.streams) for number in position.streams}
            # Without the streams that other processes have read on since it was recorded there.
            own = {number: stream for number, stream in position.streams.items() if stream.rows == given[number]}
            positions.append(dataclasses.replace(position, streams=own))
        return merge_positions(positions)

    def tokens_before(self, position: RowsPosition) -> int:
        """Tokens in the global batches before a position, those of padding among them."""
        return position.row * self._config.sequence_length

    def progress_record(self, position: RowsPosition) -> MetricsRecord:
        """What a position, of all processes, tells: `epochs` of each source and, if there were any, `dropped_records`
        by reason."""
        read = progress(position.streams, self._pipeline.mixture)
        dropped = sum((source.dropped for source in read.values()), Counter())
        epochs = {name: source.epochs for name, source in read.items()}
        return {"epochs": epochs} | ({"dropped_records": dict(sorted(dropped.items()))} if dropped else {})

    def close(self) -> None:
        """Stop the thread and the processes. `start` may be called again."""
        if self._prefetcher is not None and self._readers is not None:
            self._prefetcher.stop()
            self._readers.close()
            self._prefetcher.join()
        self._prefetcher = self._readers = None

    def _batches(
        self, position: RowsPosition, readers: "_InThread | StreamProcesses"
    ) -> Iterator[tuple[Rows, RowsPosition, list[str]]]:
        streams = dict(position.streams)
        readers.begin(self._pipeline, streams)
        plans = self._plans(position.step, position.row)
        asked: deque[tuple[_BatchPlan, list[list[int]]]] = deque()
        while True:
            # With processes, one question is always waiting: they work while this thread puts a batch together.
            while len(asked) <= bool(self._config.workers):
                plan = next(plans)
                asked.append((plan, readers.ask(plan.shares)))
            plan, places = asked.popleft()
            parts = readers.answer()
            for part in parts:
                streams.update(part.streams)
            if any(source.dropped for part in parts for stream in part.streams.values() for source in stream.sources):
                check_dropped(streams, self._pipeline.mixture, self._config.max_bad_fraction)
            after = RowsPosition(plan.step + 1, plan.first_row + plan.size, dict(streams))
            yield _assembled(plan, places, parts), after, [note for part in parts for note in part.notes]

    def _plans(self, step: int, first_row: int) -> Iterator["_BatchPlan"]:
        while True:
            size = self._batch_size_at(step)
            streams = streams_of_batch(first_row, size, self._config.streams)
            local_rows = list(self._rows_of(size))
            # All rows of a stream, wanted or not: its position must not depend on who reads it.
            shares = [
                Share(stream, _rows_given(stream, first_row, self._config.streams), int((streams == stream).sum()))
                for stream in sorted({int(streams[row]) for row in local_rows})
            ]
            yield _BatchPlan(step, first_row, size, streams, local_rows, shares)
            step, first_row = step + 1, first_row + size


class _BatchPlan(NamedTuple):
    step: int
    first_row: int
    size: int
    streams: Int[np.ndarray, "B"]
    local_rows: list[int]
    shares: list[Share]


class _InThread:
    """Reads in the thread that asks; otherwise like `StreamProcesses`."""

    def begin(self, pipeline: Pipeline, positions: StreamPositions) -> None:
        self._streams = Streams(pipeline, positions)

    def ask(self, shares: Sequence[Share]) -> list[list[int]]:
        self._shares = shares
        return [list(range(len(shares)))]

    def answer(self) -> list[BatchPart]:
        return [self._streams.read(self._shares)]

    def close(self) -> None:
        pass


def _assembled(plan: _BatchPlan, places: list[list[int]], parts: list[BatchPart]) -> Rows:
    """The local rows of a batch, in their order."""
    found: dict[int, tuple[int, int]] = {}
    for number, mine in enumerate(places):
        # The shares of a part one after the other, as `Streams.read` lays them.
        rows = [row for place in mine for row in np.flatnonzero(plan.streams == plan.shares[place].stream).tolist()]
        found.update((row, (number, index)) for index, row in enumerate(rows))
    wanted = [found[row] for row in plan.local_rows]
    return {name: np.stack([parts[part].rows[name][index] for part, index in wanted]) for name in parts[0].rows}


def _rows_given(stream: int, first_row: int, streams: int) -> int:
    """How many of the rows before `first_row` came from the stream; see `streams_of_batch`."""
    return (first_row - stream + streams - 1) // streams


def _fingerprint(pipeline: Pipeline) -> str:
    config = pipeline.config
    facts = {
        "sources": pipeline.mixture.facts(),
        "tokenizer": pipeline.tokenizer.fingerprint,
        "sequence_length": config.sequence_length,
        "streams": config.streams,
        "seed": pipeline.seed,
        "validation_fraction": config.validation_fraction,
        "packing": PACKING_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def validation_batches(
    documents: Documents, tokenizer: Tokenizer, config: DataConfig, batch_size: int
) -> Iterator[Rows]:
    """All held-out documents once, each token a target once, arrays [batch_size, T]. Rows missing in the last batch are
    padding throughout (`segment_ids` and `loss_weights` 0)."""
    given = validation_rows(documents, tokenizer, config.sequence_length)
    while rows := list(itertools.islice(given, batch_size)):
        rows += [TokenBatch.empty_row(config.sequence_length)] * (batch_size - len(rows))
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def usable_documents(
    documents: Documents, tokenizer: Tokenizer, bad: BadRecords, limit: int | None = None
) -> Documents:
    """Those of the documents that can be used. They are read once.

    Args:
        bad: Where the others are noted.
        limit: How many are wanted at the most, the first ones; no more are read.

    Raises:
        UserError: too many of those that were read cannot be used, or none can.
    """
    kept, read = array("q"), 0
    for number, document in enumerate(in_order(documents)):
        if len(kept) == limit:
            break
        read += 1
        try:
            usable(document, tokenizer, number)
        except BadRecordError as error:
            bad.note(error)
        else:
            kept.append(number)
    bad.check(read)
    if len(kept) == len(documents):
        return documents
    name = f"the first {read}" + ", those that can be used" * (len(kept) < read)
    return SelectedDocuments(documents, np.array(kept, np.int64), name)


def texts_of(documents: Documents, tokenizer: Tokenizer | None = None) -> Iterator[str]:
    """The texts of the documents that can be used.

    Args:
        tokenizer: Turns documents that are ids back into text; not needed where all are texts.
    """
    for document in in_order(documents):
        if isinstance(document, str):
            yield document
        elif isinstance(document, np.ndarray):
            if tokenizer is None:
                raise ValueError("documents that are ids have a text only by their tokenizer")
            yield tokenizer.decode(document.tolist())


def text_bytes(documents: Documents, tokenizer: Tokenizer | None = None) -> int:
    """Bytes of all documents in UTF-8, by which losses of different tokenizers are compared; see `texts_of`."""
    return sum(len(text.encode()) for text in texts_of(documents, tokenizer))


def zlib_bits_per_byte(documents: Documents, tokenizer: Tokenizer | None = None) -> float:
    """Bits that zlib (level 9) needs for each byte of the documents one after another: what a model must beat. See
    `texts_of`."""
    compressor = zlib.compressobj(9)
    size = compressed = 0
    for text in texts_of(documents, tokenizer):
        encoded = text.encode()
        size += len(encoded)
        compressed += len(compressor.compress(encoded))
    return 8 * (compressed + len(compressor.flush())) / size
