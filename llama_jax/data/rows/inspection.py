"""What rows of tokens say when they are read by a person, and what they amount to. Knows nothing of where rows come
from: any dictionary with the arrays of a row will do, whether all of its tokens bear loss or some."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.data.rows.packing import Row, token_ids
from llama_jax.data.sources.documents import BadRecordError, Documents, read_many
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.stream_decoding import StreamDecoder

PERCENTILES = (1, 10, 50, 90, 99, 100)

_READ_TOGETHER = 64


class Piece(NamedTuple):
    """A stretch of text all of whose tokens bear loss, or none."""

    text: str
    """Control tokens by their names."""
    bears_loss: bool


class Segment(NamedTuple):
    """A document of a row, or the part of it that is there."""

    pieces: list[Piece]
    tokens: int
    """Those that are read and the last one, which is only predicted."""
    loss_tokens: int
    """Tokens that are predicted with a weight above 0."""
    opens: bool
    """It begins with the first token of the document."""
    closes: bool
    """It ends with the last one."""


def segments_of(row: Row, tokenizer: Tokenizer) -> list[Segment]:
    """The documents of a row, in order; padding is none of them."""
    return [_segment(row, places, tokenizer) for places in _places(row)]


def _places(row: Row) -> list[slice]:
    numbers = row["segment_ids"]
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds) if numbers[start]]


def _segment(row: Row, places: slice, tokenizer: Tokenizer) -> Segment:
    ids = [int(row["tokens"][places][0]), *row["targets"][places].tolist()]
    bears_loss = [False, *(row["loss_weights"][places] > 0).tolist()]
    return Segment(
        _pieces(ids, bears_loss, tokenizer),
        tokens=len(ids),
        loss_tokens=sum(bears_loss),
        opens=ids[0] == tokenizer.bos_id,
        closes=ids[-1] in tokenizer.stop_ids,
    )


def _pieces(ids: Sequence[int], bears_loss: Sequence[bool], tokenizer: Tokenizer) -> list[Piece]:
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    decoder = StreamDecoder(tokenizer)
    texts: list[tuple[str, bool]] = []
    for token, bears in zip(ids, bears_loss, strict=True):
        texts.append((decoder.push(token) + names.get(token, ""), bears))
    texts.append((decoder.finish(), bears_loss[-1]))
    grouped = itertools.groupby((pair for pair in texts if pair[0]), key=lambda pair: pair[1])
    return [Piece("".join(text for text, _ in group), bears) for bears, group in grouped]


@dataclass
class RowStatistics:
    """Counts over rows, added one by one."""

    rows: int = 0
    tokens: int = 0
    """Places for tokens, padding included."""
    padding: int = 0
    loss_tokens: int = 0
    segments: int = 0
    whole: int = 0
    """Documents that lie in one row from their first token to their last."""
    cut: int = 0
    """Rows that end in the middle of a document."""

    def add(self, row: Row, tokenizer: Tokenizer) -> None:
        """Count a row."""
        places = _places(row)
        self.rows += 1
        self.tokens += len(row["tokens"])
        self.padding += int((row["segment_ids"] == 0).sum())
        self.loss_tokens += int((row["loss_weights"] > 0).sum())
        self.segments += len(places)
        ends = np.array(tokenizer.stop_ids)
        closes = [bool(np.isin(row["targets"][each.stop - 1], ends)) for each in places]
        opens = [int(row["tokens"][each.start]) == tokenizer.bos_id for each in places]
        self.whole += sum(map(all, zip(opens, closes, strict=True)))
        self.cut += bool(places) and not closes[-1]

    def to_json(self) -> dict[str, Any]:
        """Counts, and shares between 0 and 1."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "padding_share": self.padding / max(1, self.tokens),
            "loss_share": self.loss_tokens / max(1, self.tokens),
            "segments_per_row": self.segments / max(1, self.rows),
            "segments_split_share": 1 - self.whole / max(1, self.segments),
            "rows_cut_share": self.cut / max(1, self.rows),
        }


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a source are, in tokens with BOS and EOS, judged by some of them."""

    documents: int
    """All of the source."""
    lengths: Int[np.ndarray, "sampled"]
    """Of those that were looked at and can be used."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Those that were looked at and cannot be used, by reason."""

    @property
    def sampled(self) -> int:
        """Documents that were looked at."""
        return len(self.lengths) + sum(self.dropped.values())

    @property
    def is_exact(self) -> bool:
        """All documents were looked at."""
        return self.sampled == self.documents

    @property
    def total(self) -> int:
        """Tokens of all documents, by estimate unless `is_exact`."""
        return round(float(self.lengths.sum()) * self.documents / max(1, self.sampled))

    @property
    def total_predicted(self) -> int:
        """Tokens of all documents that are predicted: all but the first of each."""
        predicted = float(self.lengths.sum()) - len(self.lengths)
        return round(predicted * self.documents / max(1, self.sampled))

    def percentiles(self) -> dict[str, int]:
        """Lengths by percentile, in whole tokens."""
        if not len(self.lengths):
            return {}
        values = np.percentile(self.lengths, PERCENTILES, method="nearest")
        return {str(percentile): int(value) for percentile, value in zip(PERCENTILES, values, strict=True)}

    def longer_than(self, tokens: int) -> float:
        """Share of the documents that have more tokens to predict than a row has places."""
        return float((self.lengths - 1 > tokens).mean()) if len(self.lengths) else 0.0


def measure_lengths(documents: Documents, tokenizer: Tokenizer, sample: int) -> Lengths:
    """Look at so many documents at the most, spread evenly over the source."""
    count = len(documents)
    chosen = np.unique(np.linspace(0, count - 1, min(count, sample)).astype(np.int64)).tolist()
    lengths: list[int] = []
    dropped: Counter[str] = Counter()
    for start in range(0, len(chosen), _READ_TOGETHER):
        numbers = chosen[start : start + _READ_TOGETHER]
        for number, document in zip(numbers, read_many(documents, numbers), strict=True):
            try:
                lengths.append(len(token_ids(document, tokenizer, number)))
            except BadRecordError as error:
                dropped[error.reason] += 1
    return Lengths(count, np.array(lengths, np.int64), dict(sorted(dropped.items())))
