"""Rows to batches: which stream gives each row of the global batch, this process's share of it, and the exact position.

The order of rows depends on the number of streams only: any number of processes reads the same batches, and a run may
go on with another number of them. Knows nothing of devices.
"""

import hashlib
import json
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.packing import PACKING_VERSION, Row, position_of, restore_position, training_stream, validation_rows
from llama_jax.data.sources import Documents
from llama_jax.data.tokenizers import Tokenizer

Batch: TypeAlias = dict[str, np.ndarray]
"""The arrays of a row, stacked: [rows, T]."""

State: TypeAlias = dict[str, Any]
"""Position between two batches, as JSON values: `step`, batches given; `row`, rows of the global batches before; and
`streams`, by number of the stream the `rows` it has given and its `position` among its documents."""

_T = TypeVar("_T")


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


class Loader:
    """Training batches, prepared ahead by a thread.

    ```
    for rows, state in loader.start(state): ...
    ```

    Args:
        documents: The training documents.
        tokenizer: Gives the ids.
        config: The data section; `validation_fraction` enters the fingerprint only.
        seed: Seed of the order of documents.
        batch_size_at: Rows of the global batch of each step, from 0.
        rows_of: Row numbers, within a global batch of the given size, that this process is to supply, in the order
            wanted; they need not be its own alone. None: all rows. A process reads the streams of these rows only. With
            several processes let no batch be smaller than `data.streams`, or a batch ramp below that hands streams from
            process to process, and the new reader must first encode what the stream has given so far.

    Raises:
        UserError: `data.streams` and the size of the first batch do not fit each other.
    """

    fingerprint: str
    """SHA-256 in hexadecimal of all that decides the order of rows, but for batch sizes. Only a state that was recorded
    under the same fingerprint may be given to `start`."""

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        config: DataConfig,
        seed: int,
        *,
        batch_size_at: Callable[[int], int],
        rows_of: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        self._open_stream = lambda stream: _StreamReader(documents, tokenizer, config, seed, stream)
        self._config = config
        self._batch_size_at = batch_size_at
        self._rows_of = range if rows_of is None else rows_of
        self._ahead: _Ahead[tuple[Batch, State]] | None = None
        self.fingerprint = _fingerprint(documents, tokenizer, config, seed)
        streams_of_batch(0, batch_size_at(0), config.streams)

    def start(self, state: State | None = None) -> "Loader":
        """Begin after the batch that `state` was given with (or merged from); at the first batch when it is None.

        Returns:
            The loader itself, an endless iterator of `(rows, state)`: this process's rows, arrays [local rows, T], and
            the state after this batch. A state is a snapshot that later batches do not change.
        """
        self.close()
        self._ahead = _Ahead(self._batches(state), self._config.prefetch_batches)
        return self

    def __iter__(self) -> Iterator[tuple[Batch, State]]:
        return self

    def __next__(self) -> tuple[Batch, State]:
        """The next batch; raises what preparing it raised."""
        if self._ahead is None:
            raise RuntimeError("the loader gives batches between start() and close()")
        return next(self._ahead)

    def close(self) -> None:
        """Stop the thread. `start` may be called again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _batches(self, state: State | None) -> Iterator[tuple[Batch, State]]:
        state = state or {"step": 0, "row": 0, "streams": {}}
        step, first_row, records = state["step"], state["row"], dict(state["streams"])
        readers: dict[int, _StreamReader] = {}
        while True:
            batch_size = self._batch_size_at(step)
            streams = streams_of_batch(first_row, batch_size, self._config.streams)
            local_rows = list(self._rows_of(batch_size))
            rows: dict[int, Row] = {}
            for stream in sorted({int(streams[row]) for row in local_rows}):
                if stream not in readers:
                    readers[stream] = self._open_stream(stream)
                    readers[stream].restore(records.get(str(stream)))
                readers[stream].advance_to(_rows_given(stream, first_row, self._config.streams))
                # All rows of the stream, wanted or not: its position must not depend on who reads it.
                for row in np.flatnonzero(streams == stream).tolist():
                    rows[row] = readers[stream].read()
                records[str(stream)] = readers[stream].record()
            step, first_row = step + 1, first_row + batch_size
            batch = {name: np.stack([rows[row][name] for row in local_rows]) for name in rows[local_rows[0]]}
            yield batch, {"step": step, "row": first_row, "streams": dict(records)}


def _rows_given(stream: int, first_row: int, streams: int) -> int:
    """How many of the rows before `first_row` came from the stream; see `streams_of_batch`."""
    return (first_row - stream + streams - 1) // streams


def _fingerprint(documents: Documents, tokenizer: Tokenizer, config: DataConfig, seed: int) -> str:
    facts = {
        "documents": documents.identity(),
        "tokenizer": tokenizer.fingerprint,
        "sequence_length": config.sequence_length,
        "streams": config.streams,
        "seed": seed,
        "validation_fraction": config.validation_fraction,
        "packing": PACKING_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _StreamReader:
    """One logical stream and how many rows it has given."""

    def __init__(self, documents: Documents, tokenizer: Tokenizer, config: DataConfig, seed: int, stream: int) -> None:
        self._iterator = iter(training_stream(documents, tokenizer, config, seed, stream))
        self._stream = stream
        self._rows = 0

    def restore(self, record: dict[str, Any] | None) -> None:
        if record is not None:
            restore_position(self._iterator, record["position"])
            self._rows = record["rows"]

    def record(self) -> dict[str, Any]:
        return {"rows": self._rows, "position": position_of(self._iterator)}

    def read(self) -> Row:
        self._rows += 1
        return next(self._iterator)

    def advance_to(self, rows: int) -> None:
        """Pass over rows that another process has read since the record was made, or that no record tells of."""
        if self._rows > rows:
            raise ValueError(f"stream {self._stream} has given {self._rows} rows where {rows} belong before this batch")
        while self._rows < rows:
            self.read()


class _Ahead(Generic[_T]):
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

    def __next__(self) -> _T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
            if not self._ready:
                raise self._error or StopIteration
            item = self._ready.popleft()
            self._changed.notify_all()
        return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
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
                self._error = error
                self._changed.notify_all()


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


def text_bytes(documents: Documents) -> int:
    """Bytes of all documents in UTF-8, by which losses of different tokenizers are compared."""
    return sum(len(documents[index].encode()) for index in range(len(documents)))


def zlib_bits_per_byte(documents: Documents) -> float:
    """Bits that zlib (level 9) needs for each byte of the documents one after another: what a model must beat."""
    compressor = zlib.compressobj(9)
    size = compressed = 0
    for index in range(len(documents)):
        text = documents[index].encode()
        size += len(text)
        compressed += len(compressor.compress(text))
    return 8 * (compressed + len(compressor.flush())) / size
