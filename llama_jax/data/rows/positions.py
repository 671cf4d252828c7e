"""Where the data of a run stands between two batches, exactly: one small record for each stream.

Checkpoints keep it as JSON, and those of earlier versions are read too, so what `to_json` gives must not change."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass
class SourcePosition:
    """Where the rows of one source in one stream stand."""

    documents: int = 0
    """Documents begun, those that could not be used among them."""
    offset: int = 0
    """Token pairs used of the document begun last; 0: nothing of it is left."""
    rows: int = 0
    """Rows given."""
    ledger: int = 0
    """See `ledger`: the sum over all token pairs in these rows."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents that could not be used, by reason."""

    def copy(self) -> "SourcePosition":
        """The same, which does not change when this one does."""
        return dataclasses.replace(self, dropped=dict(self.dropped))

    def to_json(self) -> list[Any]:
        """The fields in their order, without the last where nothing was dropped."""
        numbers: list[Any] = [self.documents, self.offset, self.rows, self.ledger]
        return [*numbers, dict(self.dropped)] if self.dropped else numbers

    @classmethod
    def from_json(cls, fields: Sequence[Any]) -> "SourcePosition":
        """The position that `to_json` gave."""
        documents, offset, rows, ledger, *dropped = fields
        return cls(documents, offset, rows, ledger, dict(dropped[0]) if dropped else {})


@dataclass(frozen=True)
class StreamPosition:
    """Where one stream stands."""

    rows: int
    """Rows given."""
    sources: tuple[SourcePosition, ...]
    """By source of the mixture."""


StreamPositions: TypeAlias = Mapping[int, StreamPosition]
"""By number of the stream."""


@dataclass(frozen=True)
class RowsPosition:
    """Where the rows of a mixture stand between two batches. A snapshot: later batches do not change it."""

    step: int = 0
    """Batches given."""
    row: int = 0
    """Rows of these batches, those of all processes."""
    streams: StreamPositions = field(default_factory=dict)
    """Of the streams that were read; the others are at their beginning."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        streams = {
            str(number): {"rows": stream.rows, "sources": [source.to_json() for source in stream.sources]}
            for number, stream in self.streams.items()
        }
        return {"step": self.step, "row": self.row, "streams": streams}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "RowsPosition":
        """The position that `to_json` gave."""
        streams = {
            int(number): StreamPosition(stream["rows"], tuple(map(SourcePosition.from_json, stream["sources"])))
            for number, stream in record["streams"].items()
        }
        return cls(record["step"], record["row"], streams)


def merge_positions(positions: Sequence[RowsPosition]) -> RowsPosition:
    """One position from those that the processes of a run recorded after the same batch.

    Raises:
        ValueError: the positions are of different batches, or differ about a stream.
    """
    if len({(position.step, position.row) for position in positions}) != 1:
        places = [(position.step, position.row) for position in positions]
        raise ValueError(f"positions after different batches cannot be merged: (step, row) are {places}")
    streams: dict[int, StreamPosition] = {}
    for position in positions:
        for number, stream in position.streams.items():
            known = streams.setdefault(number, stream)
            # A process that has handed a stream on, when the batch grew, still records where it left it.
            if stream.rows > known.rows:
                streams[number] = stream
            elif stream.rows == known.rows and stream != known:
                raise ValueError(f"two processes read stream {number} differently; their documents are not the same")
    return RowsPosition(positions[0].step, positions[0].row, streams)
