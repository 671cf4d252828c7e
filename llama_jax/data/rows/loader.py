"""Rows to batches: which stream gives each row of the global batch, this process's share of it, and the exact position.

The order of rows depends on the mixture and the number of streams only: any number of processes reads the same batches,
and a run may go on with another number of them. Knows nothing of devices.
"""

import hashlib
import json
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.mixture import Mixture
from llama_jax.data.rows.packing import PACKING_VERSION, Row, validation_rows
from llama_jax.data.rows.prefetching import Ahead
from llama_jax.data.rows.progress import check_dropped, dropped_in, progress
from llama_jax.data.rows.streams import NOTES, Batch, Part, Pipeline, Share, Streams
from llama_jax.data.rows.workers import StreamProcesses
from llama_jax.data.sources.documents import Documents, in_order
from llama_jax.data.tokenizers import Tokenizer

State: TypeAlias = dict[str, Any]
"""Position between two batches, as JSON values: `step`, batches given; `row`, rows of the global batches before; and
`streams`, by number of the stream its record: see `streams.Records`."""


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


def merge_states(states: Sequence[State]) -> State:
    """One state from those that the processes of a run recorded after the same batch.

    Raises:
        ValueError: the states are of different batches, or differ about a stream.
    """
    if len({(state["step"], state["row"]) for state in states}) != 1:
        places = [(state["step"], state["row"]) for state in states]
        raise ValueError(f"states of different batches cannot be merged: (step, row) are {places}")
    streams: dict[str, Any] = {}
    for state in states:
        for stream, record in state["streams"].items():
            known = streams.setdefault(stream, record)
            # A process that has handed a stream on, when the batch grew, still records where it left it.
            if record["rows"] > known["rows"]:
                streams[stream] = record
            elif record["rows"] == known["rows"] and record != known:
                raise ValueError(f"two processes read stream {stream} differently; their documents are not the same")
    return {"step": states[0]["step"], "row": states[0]["row"], "streams": streams}


def _own_part(state: State, streams: int) -> State:
    """A state without the streams that other processes have read on since it was recorded there."""
    own = {
        stream: record
        for stream, record in state["streams"].items()
        if record["rows"] == _rows_given(int(stream), state["row"], streams)
    }
    return {**state, "streams": own}


class Loader:
    """Training batches, prepared ahead by a thread, or by processes where `config.workers` asks for them.

    ```
    for rows, state in loader.start(state): ...
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
    """SHA-256 in hexadecimal of all that decides the order of rows, but for batch sizes. Only a state that was recorded
    under the same fingerprint may be given to `start`."""

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
        self._ahead: Ahead[tuple[Batch, State, list[str]]] | None = None
        self.fingerprint = _fingerprint(self._pipeline)
        streams_of_batch(0, batch_size_at(0), config.streams)

    def start(self, state: State | None = None) -> "Loader":
        """Begin after the batch that `state` was given with (or merged from); at the first batch when it is None.

        Returns:
            The loader itself, an endless iterator of `(rows, state)`: this process's rows, arrays [local rows, T], and
            the state after this batch. A state is a snapshot that later batches do not change.
        """
        self.close()
        self._readers = StreamProcesses(self._config.workers) if self._config.workers else _InThread()
        self._ahead = Ahead(self._batches(state, self._readers), self._config.prefetch_batches)
        return self

    def __iter__(self) -> Iterator[tuple[Batch, State]]:
        return self

    def __next__(self) -> tuple[Batch, State]:
        """The next batch; raises what preparing it raised.

        Raises:
            UserError: too many documents cannot be used, or any where `bad_records` says so.
            CannotGoOnError: a reader process died.
        """
        if self._ahead is None:
            raise RuntimeError("the loader gives batches between start() and close()")
        rows, state, notes = next(self._ahead)
        for note in notes[: NOTES - self._said]:
            self._said += 1
            more = "; further ones are only counted (dropped_records in the metrics)" * (self._said == NOTES)
            self._say(f"bad record skipped: {note}{more}")
        return rows, state

    def merged(self, states: Sequence[State]) -> State:
        """One state from those that all processes recorded after the same batch; see `merge_states`."""
        return merge_states([_own_part(state, self._config.streams) for state in states])

    def progress_record(self, state: State) -> dict[str, Any]:
        """What a merged state tells of: `epochs` of each source and, if there were any, `dropped_records` by reason."""
        told = progress(state["streams"], self._pipeline.mixture)
        dropped = sum((source.dropped for source in told.values()), Counter())
        epochs = {name: source.epochs for name, source in told.items()}
        return {"epochs": epochs} | ({"dropped_records": dict(sorted(dropped.items()))} if dropped else {})

    def close(self) -> None:
        """Stop the thread and the processes. `start` may be called again."""
        if self._ahead is not None and self._readers is not None:
            self._ahead.stop()
            self._readers.close()
            self._ahead.join()
        self._ahead = self._readers = None

    def _batches(
        self, state: State | None, readers: "_InThread | StreamProcesses"
    ) -> Iterator[tuple[Batch, State, list[str]]]:
        state = state or {"step": 0, "row": 0, "streams": {}}
        records = dict(state["streams"])
        readers.begin(self._pipeline, records)
        plans = self._plans(state["step"], state["row"])
        asked: deque[tuple[_Plan, list[list[int]]]] = deque()
        while True:
            # With processes, one question is always waiting: they work while this thread puts a batch together.
            while len(asked) <= bool(self._config.workers):
                plan = next(plans)
                asked.append((plan, readers.ask(plan.shares)))
            plan, places = asked.popleft()
            parts = readers.answer()
            for part in parts:
                records.update(part.records)
            if any(dropped_in(part.records) for part in parts):
                check_dropped(records, self._pipeline.mixture, self._config.max_bad_fraction)
            after = {"step": plan.step + 1, "row": plan.first_row + plan.size, "streams": dict(records)}
            yield _assembled(plan, places, parts), after, [note for part in parts for note in part.notes]

    def _plans(self, step: int, first_row: int) -> Iterator["_Plan"]:
        while True:
            size = self._batch_size_at(step)
            streams = streams_of_batch(first_row, size, self._config.streams)
            local_rows = list(self._rows_of(size))
            # All rows of a stream, wanted or not: its position must not depend on who reads it.
            shares = [
                Share(stream, _rows_given(stream, first_row, self._config.streams), int((streams == stream).sum()))
                for stream in sorted({int(streams[row]) for row in local_rows})
            ]
            yield _Plan(step, first_row, size, streams, local_rows, shares)
            step, first_row = step + 1, first_row + size


class _Plan(NamedTuple):
    """What a batch is made of."""

    step: int
    first_row: int
    size: int
    streams: Int[np.ndarray, "B"]
    local_rows: list[int]
    shares: list[Share]


class _InThread:
    """Reads in the thread that asks; otherwise like `StreamProcesses`."""

    def begin(self, pipeline: Pipeline, records: Mapping[str, dict[str, Any]]) -> None:
        self._streams = Streams(pipeline, records)

    def ask(self, shares: Sequence[Share]) -> list[list[int]]:
        self._shares = shares
        return [list(range(len(shares)))]

    def answer(self) -> list[Part]:
        return [self._streams.read(self._shares)]

    def close(self) -> None:
        pass


def _assembled(plan: _Plan, places: list[list[int]], parts: list[Part]) -> Batch:
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
) -> Iterator[Batch]:
    """All held-out documents once, each token a target once, arrays [batch_size, T]. Rows missing in the last batch are
    padding throughout (`segment_ids` and `loss_weights` 0)."""
    rows: list[Row] = []
    for row in validation_rows(documents, tokenizer, config.sequence_length):
        rows.append(row)
        if len(rows) == batch_size:
            yield {name: np.stack([row[name] for row in rows]) for name in row}
            rows = []
    if rows:
        rows += [{name: np.zeros_like(array) for name, array in rows[0].items()}] * (batch_size - len(rows))
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


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
