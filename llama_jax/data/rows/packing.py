"""Documents to rows: ids between BOS and EOS, laid end to end and cut into rows of equal length.

Knows nothing of steps or processes. A row is a dictionary of numpy arrays [T], by the fields of `TokenBatch`.
Positions start again from 0 in each row, also where it opens in the middle of a document.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.batches import TokenBatch
from llama_jax.core.errors import UserError
from llama_jax.data.rows.ledger import entered
from llama_jax.data.rows.positions import SourcePosition
from llama_jax.data.sources.documents import BadRecordError, Documents, check_is_text, in_order
from llama_jax.data.tokenizers import Tokenizer

PACKING_VERSION = 2
"""Part of the pipeline's fingerprint: raise it when the same documents come to give other rows."""

_DRAW_CHUNK = 4096
"""Documents: epochs smaller than this are ordered several at once, to seed a generator less often."""
_ORDERS_KEPT = 3
"""Blocks of epochs in memory: the streams of a source are not all in the same one."""
_MAX_CONSECUTIVE_BAD = 10_000
"""Documents one after another that cannot be used, after which a row is given up."""

Row: TypeAlias = dict[str, np.ndarray]
OnBad: TypeAlias = Callable[[BadRecordError], None]


class Epochs:
    """The numbers of the documents of a source without end, each epoch in an order of its own.

    Args:
        count: Documents of the source.
        seed: Seed of the run.
        source: Number of the source in the mixture: two sources of one size must not be ordered alike.
    """

    def __init__(self, count: int, seed: int, source: int = 0) -> None:
        self.count = count
        self._seed = [seed % 2**32, source]
        self._epochs_together = max(1, _DRAW_CHUNK // count)
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, place: int) -> int:
        block, within = divmod(place, self._epochs_together * self.count)
        order = self._orders.get(block)
        if order is None:
            if len(self._orders) == _ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
            order = self._orders[block] = self._order(block)
        return int(order[within])

    def _order(self, block: int) -> Int[np.ndarray, "places"]:
        # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
        generator = np.random.RandomState([*self._seed, block])
        return np.concatenate([generator.permutation(self.count) for _ in range(self._epochs_together)])


class PackedRows:
    """Endless rows of one source in one of the logical streams.

    All streams share one order of the documents, another in each epoch, and are dealt from it in turn: every epoch has
    each document once, however few there are. Documents are read and encoded by whoever asks for a row.

    Args:
        documents: The documents of the source.
        tokenizer: Gives the ids of those that are texts.
        sequence_length: Tokens in a row.
        epochs: The order of the documents, shared by the streams.
        stream: Number of the stream, from 0, and of how many.
        on_bad: Told each document that cannot be used, before it is counted; may raise.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        sequence_length: int,
        epochs: Epochs,
        stream: tuple[int, int],
        on_bad: OnBad = lambda error: None,
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._length = sequence_length
        self._epochs = epochs
        self._stream, self._streams = stream
        self._on_bad = on_bad
        self._position = SourcePosition()
        self._number = -1
        self._ids: np.ndarray | None = None
        """Of the document under way, number `_number`; None at a start and between two documents."""
        self._at_hand: deque[str | np.ndarray | BadRecordError] = deque()
        """Documents read ahead, from place `_next_place` on."""
        self._pairs_seen, self._documents_seen = sequence_length, 1

    def position(self) -> SourcePosition:
        """Where the rows stand; a snapshot that later rows do not change."""
        return self._position.copy()

    def restore(self, position: SourcePosition) -> None:
        """Continue where `position` was recorded. The document that was under way is read again with the next row."""
        self._position = position.copy()
        self._ids = None
        self._at_hand.clear()

    def lookahead(self, rows: int) -> list[int]:
        """Numbers of the documents that will make up so many more rows, by a guess, but for those at hand. To be read
        together with those of other streams, and given to `supply`."""
        left = 0 if self._ids is None else len(self._ids) - 1 - self._position.offset
        count = -(-(rows * self._length - left) * self._documents_seen // self._pairs_seen)
        first = self._next_place
        return [self._epochs[self._place(place)] for place in range(first + len(self._at_hand), first + count)]

    def supply(self, documents: Sequence[str | np.ndarray | BadRecordError]) -> None:
        """Take the documents that `lookahead` named."""
        self._at_hand.extend(documents)

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        """The next row.

        Raises:
            UserError: no document can be used, or the one under way is not what it was.
        """
        position, row = self._position, TokenBatch.empty_row(self._length)
        filled = segment = 0
        while filled < self._length:
            ids = self._begin() if self._ids is None else self._ids
            start = position.offset
            stop = min(start + self._length - filled, len(ids) - 1)
            segment += 1
            write_segment(row, filled, segment, ids[start : stop + 1])
            filled += stop - start
            position.ledger = entered(position.ledger, self._number, start, stop)
            position.offset = stop
            if stop == len(ids) - 1:
                self._ids, position.offset = None, 0
        position.rows += 1
        return row

    @property
    def _next_place(self) -> int:
        """Place, among the documents of the stream, of the document to read next: after a restart that may be the one
        under way."""
        again = self._ids is None and self._position.offset > 0
        return self._position.documents - again

    def _place(self, place: int) -> int:
        return self._stream + place * self._streams

    def _begin(self) -> Int[np.ndarray, "ids"]:
        """The ids of the document under way, or else of the next that can be used."""
        ids = self._read_again() if self._position.offset else self._read_next()
        self._pairs_seen += len(ids) - 1
        self._documents_seen += 1
        self._ids = ids
        return ids

    def _read(self) -> Int[np.ndarray, "ids"]:
        self._number = self._epochs[self._place(self._next_place)]
        document = self._at_hand.popleft() if self._at_hand else self._documents[self._number]
        return token_ids(document, self._tokenizer, self._number)

    def _read_next(self) -> Int[np.ndarray, "ids"]:
        position, last = self._position, "none"
        for _ in range(_MAX_CONSECUTIVE_BAD):
            try:
                ids = self._read()
            except BadRecordError as error:
                self._on_bad(error)
                position.dropped[error.reason] = position.dropped.get(error.reason, 0) + 1
                last = str(error)
            else:
                return ids
            finally:
                position.documents += 1
        raise UserError(
            f"data.source: {_MAX_CONSECUTIVE_BAD} documents one after another cannot be used; the last: {last}"
        )

    def _read_again(self) -> Int[np.ndarray, "ids"]:
        try:
            ids = self._read()
        except BadRecordError as error:
            raise UserError(f"{error}; it could be read before, so it was changed since the run began") from None
        if len(ids) - 1 <= self._position.offset:
            raise UserError(f"data.source: document {self._number} is shorter than when the run read it; restore it")
        return ids


def validation_rows(documents: Documents, tokenizer: Tokenizer, sequence_length: int) -> Iterator[Row]:
    """All documents once, in their order, but for those that cannot be used. The last row is padded."""
    row = TokenBatch.empty_row(sequence_length)
    filled = segment = 0
    for ids in _usable_ids(documents, tokenizer):
        start = 0
        while start < len(ids) - 1:
            stop = min(start + sequence_length - filled, len(ids) - 1)
            segment += 1
            write_segment(row, filled, segment, ids[start : stop + 1])
            filled, start = filled + stop - start, stop
            if filled == sequence_length:
                yield row
                row, filled, segment = TokenBatch.empty_row(sequence_length), 0, 0
    if filled:
        yield row


def token_ids(document: str | np.ndarray | BadRecordError, tokenizer: Tokenizer, number: int) -> Int[np.ndarray, "ids"]:
    """The ids of a document (int32), at least two, BOS and EOS among them; see `usable`."""
    good = usable(document, tokenizer, number)
    return np.array(tokenizer.encode_document(good), np.int32) if isinstance(good, str) else good


def usable(document: str | np.ndarray | BadRecordError, tokenizer: Tokenizer, number: int) -> str | np.ndarray:
    """A document that can be used: its text, or its ids as int32.

    Args:
        document: A text, ids that were prepared, or the error from reading it.
        tokenizer: Bounds prepared ids.
        number: Of the document in its source, for messages.

    Raises:
        BadRecordError: the one given; or the text is not Unicode, or the ids are none or beyond the vocabulary.
    """
    if isinstance(document, BadRecordError):
        raise document
    if isinstance(document, str):
        check_is_text(document, number)
        return document
    ids = document.astype(np.int32, copy=False)
    if len(ids) < 2:
        raise BadRecordError("empty", f"document {number}", f"has {len(ids)} token ids; BOS and EOS are the least")
    # As unsigned numbers the negative ones are too large as well.
    if (largest := int(ids.view(np.uint32).max())) >= tokenizer.vocab_size:
        message = f"token id {largest} is beyond the tokenizer's {tokenizer.vocab_size}"
        raise BadRecordError("wrong_ids", f"document {number}", message)
    return ids


def _usable_ids(documents: Documents, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    for number, document in enumerate(in_order(documents)):
        with contextlib.suppress(BadRecordError):
            yield token_ids(document, tokenizer, number)


def write_segment(row: Row, start: int, segment: int, ids: Int[np.ndarray, "ids"]) -> None:
    """Write the pairs of neighbouring ids into a row, all of them to be learned."""
    pairs = slice(start, start + len(ids) - 1)
    row["tokens"][pairs] = ids[:-1]
    row["targets"][pairs] = ids[1:]
    row["segment_ids"][pairs] = segment
    row["positions"][pairs] = np.arange(len(ids) - 1)
    row["loss_weights"][pairs] = 1
