"""The logical streams that one process reads: rows of a mixture, and where each stream stands.

What is asked for is a list of rows by number; who asks, and in which process this runs, is not known here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.mixture import Mixture
from llama_jax.data.rows.packing import Epochs, PackedRows, Row
from llama_jax.data.rows.positions import StreamPosition, StreamPositions
from llama_jax.data.sources.bad_records import NOTES
from llama_jax.data.sources.documents import BadRecordError, read_many
from llama_jax.data.tokenizers import Tokenizer

Rows: TypeAlias = dict[str, np.ndarray]
"""The arrays of some rows, stacked: [rows, T]."""


class Share(NamedTuple):
    """The rows that a batch takes from one stream."""

    stream: int
    before: int
    """Rows of the stream in earlier batches."""
    rows: int
    """Rows in this batch."""


class BatchPart(NamedTuple):
    """Rows of a batch, as they were read together."""

    rows: Rows
    """Those of the first share, then those of the next."""
    streams: StreamPositions
    """Where the streams stand after it."""
    notes: list[str]
    """Bad records among the first few, a line each."""


@dataclass(frozen=True)
class Pipeline:
    """All that decides what the rows are."""

    mixture: Mixture
    tokenizer: Tokenizer
    config: DataConfig
    seed: int


class Streams:
    """Reads the streams it is asked for, and only those.

    Args:
        pipeline: What is read.
        positions: Where the streams stand; those missing, at their beginning.
    """

    def __init__(self, pipeline: Pipeline, positions: StreamPositions) -> None:
        self._pipeline = pipeline
        self._positions = positions
        self._epochs = [
            Epochs(len(source.documents), pipeline.seed, number)
            for number, source in enumerate(pipeline.mixture.sources)
        ]
        self._open: dict[int, _Stream] = {}
        self._notes: list[str] = []
        self._bad = 0

    def read(self, shares: Sequence[Share]) -> BatchPart:
        """The rows of all shares.

        Raises:
            UserError: a document cannot be used and the policy is to fail, or nearly all of them cannot.
        """
        for share in shares:
            if share.stream not in self._open:
                self._open[share.stream] = self._opened(share.stream)
            self._open[share.stream].advance_to(share.before)
        self._read_ahead(shares)
        rows = [self._open[share.stream].read() for share in shares for _ in range(share.rows)]
        positions = {share.stream: self._open[share.stream].position() for share in shares}
        notes, self._notes = self._notes, []
        return BatchPart({name: np.stack([row[name] for row in rows]) for name in rows[0]}, positions, notes)

    def _opened(self, stream: int) -> "_Stream":
        pipeline = self._pipeline
        sources = [
            PackedRows(
                source.documents,
                pipeline.tokenizer,
                pipeline.config.sequence_length,
                epochs,
                (stream, pipeline.config.streams),
                self._note,
            )
            for source, epochs in zip(pipeline.mixture.sources, self._epochs, strict=True)
        ]
        return _Stream(pipeline, stream, sources, self._positions.get(stream))

    def _read_ahead(self, shares: Sequence[Share]) -> None:
        """Read the documents that the rows will need, of all streams at once: one after another each would wait for
        storage by itself."""
        needed: list[list[tuple[PackedRows, list[int]]]] = [[] for _ in self._epochs]
        for share in shares:
            for number, rows, count in self._open[share.stream].next_sources(share.rows):
                needed[number].append((rows, rows.lookahead(count)))
        for source, readers in zip(self._pipeline.mixture.sources, needed, strict=True):
            indices = [index for _, wanted in readers for index in wanted]
            if not indices:
                continue
            documents = iter(read_many(source.documents, indices))
            for rows, wanted in readers:
                rows.supply([next(documents) for _ in wanted])

    def _note(self, error: BadRecordError) -> None:
        if self._pipeline.config.bad_records == "fail":
            raise UserError(f"{error} (data.bad_records is fail)")
        self._bad += 1
        if self._bad <= NOTES:
            self._notes.append(str(error))


class _Stream:
    """One stream: which source gives its next row, and how many rows it has given."""

    def __init__(
        self, pipeline: Pipeline, stream: int, sources: list[PackedRows], position: StreamPosition | None
    ) -> None:
        self._pipeline, self._stream, self._sources = pipeline, stream, sources
        self._rows = position.rows if position else 0
        for source, of_source in zip(sources, position.sources, strict=True) if position else ():
            source.restore(of_source)

    def position(self) -> StreamPosition:
        return StreamPosition(self._rows, tuple(source.position() for source in self._sources))

    def read(self) -> Row:
        row = next(self._sources[self._source_of(self._rows)])
        self._rows += 1
        return row

    def advance_to(self, rows: int) -> None:
        """Pass over rows that another process has read since the position was recorded, or that none tells of."""
        if self._rows > rows:
            raise ValueError(f"stream {self._stream} has given {self._rows} rows where {rows} belong before this batch")
        while self._rows < rows:
            self.read()

    def next_sources(self, count: int) -> Iterator[tuple[int, PackedRows, int]]:
        """Of each source that gives some of the next `count` rows: its number, its reader, how many it gives."""
        numbers = [self._source_of(row) for row in range(self._rows, self._rows + count)]
        for number in dict.fromkeys(numbers):
            yield number, self._sources[number], numbers.count(number)

    def _source_of(self, row: int) -> int:
        pipeline = self._pipeline
        return pipeline.mixture.source_of(row * pipeline.config.streams + self._stream, pipeline.seed)
