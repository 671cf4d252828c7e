"""Examples to rows: which examples an epoch has, in which order, and which of them share a row.

All of it is a pure function of the lengths of the examples, the seed and the number of the epoch, so that every process
knows every row of the run. The arrays of a row are as in `packing`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.batches import TokenBatch
from llama_jax.data.config import ExampleDataConfig
from llama_jax.data.instructions.examples import Examples
from llama_jax.data.rows.ledger import GOLDEN_RATIO, mixed
from llama_jax.data.rows.packing import Row, write_segment

ROWS_VERSION = 1
"""Part of the pipeline's fingerprint: raise it when the same examples come to give other rows."""

_PACKING_CHUNK = 8192
"""Examples among which those that share a row are chosen."""
_GROUPING_CHUNK = 50
"""Batches whose examples are sorted by length; as in Hugging Face's LengthGroupedSampler."""
_ORDER, _ROWS = 0, 1
"""What a generator is seeded for."""


@runtime_checkable
class Placed(Protocol):
    """What rows are made of, such as `examples.Examples`."""

    @property
    def places(self) -> Int[np.ndarray, "examples"]: ...
    @property
    def sources(self) -> Int[np.ndarray, "sources_and_one"]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class EpochPlan:
    """The rows of an epoch."""

    examples: Int[np.ndarray, "examples"]
    """Numbers of the examples, those of the first row first."""
    starts: Int[np.ndarray, "bounds"]
    """Place of the first example of each row among them, and the end of the last."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Int[np.ndarray, "examples"]:
        """Numbers of the examples of a row."""
        return self.examples[int(self.starts[row]) : int(self.starts[row + 1])]


class Planner:
    """Plans the epochs of a run.

    An epoch of one source is each of its examples once. With several, it is as many examples as there are of all
    sources, each source giving its share; each continues where it was left, with epochs of its own.

    Args:
        examples: What is planned.
        shares: Of the examples, by source.
        config: Says how rows are made.
        seed: Seed of the run.
        batch_size: Rows that `group_by_length` puts together.
        most: Examples in a row that is filled, at the most; None: as many as fit.
    """

    def __init__(
        self,
        examples: Placed,
        shares: Sequence[float],
        config: ExampleDataConfig,
        seed: int,
        batch_size: int,
        most: int | None = None,
    ) -> None:
        self._most = most or len(examples)
        self._examples, self._config, self._seed, self._batch_size = examples, config, seed % 2**32, batch_size
        self._places = examples.places
        self._bounds = np.array([int(bound * 2**64) for bound in np.cumsum(shares)[:-1]], np.uint64)

    def plan(self, epoch: int) -> EpochPlan:
        """The rows of an epoch, counted from 0."""
        order = self._order(epoch)
        generator = np.random.RandomState([self._seed, _ROWS, epoch])
        if self._config.packing == "pack":
            return _shuffled(packed(order, self._places, self._config.sequence_length, self._most), generator)
        if self._config.group_by_length:
            order = _grouped(order, self._places, self._batch_size, generator, longest_first=epoch == 0)
        return EpochPlan(order, np.arange(len(order) + 1))

    def examples_before(self, epoch: int) -> Int[np.ndarray, "sources"]:
        """Examples that each source has given before an epoch."""
        return np.bincount(self._sources(0, epoch * len(self._examples)), minlength=len(self._examples.sources) - 1)

    def source_of(self, examples: Int[np.ndarray, "examples"]) -> Int[np.ndarray, "examples"]:
        """Number of the source that each example is of."""
        return np.searchsorted(self._examples.sources, examples, side="right") - 1

    def _order(self, epoch: int) -> Int[np.ndarray, "examples"]:
        """Numbers of the examples of an epoch, in the order they are drawn."""
        count = len(self._examples)
        sources = self._sources(epoch * count, (epoch + 1) * count)
        order = np.empty(count, np.int64)
        for source, given in enumerate(self.examples_before(epoch).tolist()):
            places = np.flatnonzero(sources == source)
            order[places] = self._drawn(source, given, given + len(places))
        return order

    def _drawn(self, source: int, start: int, stop: int) -> Int[np.ndarray, "drawn"]:
        """Numbers of the examples that a source gives from one place of its endless order to another."""
        first, end = (int(bound) for bound in self._examples.sources[source : source + 2])
        count = end - first
        epochs = range(start // count, -(-stop // count))
        # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
        orders = [np.random.RandomState([self._seed, _ORDER, source, epoch]).permutation(count) for epoch in epochs]
        drawn = np.concatenate([np.zeros(0, np.int64), *orders])
        return first + drawn[start - epochs.start * count :][: stop - start]

    def _sources(self, start: int, stop: int) -> Int[np.ndarray, "places"]:
        """Number of the source that gives the example at each place of the run, as `Mixture.source_of` chooses."""
        if not len(self._bounds):
            return np.zeros(stop - start, np.int64)
        places = np.arange(start, stop, dtype=np.uint64) * np.uint64(GOLDEN_RATIO) + np.uint64(mixed(self._seed))
        return np.searchsorted(self._bounds, places, side="right")


def packed(
    order: Int[np.ndarray, "examples"], lengths: Int[np.ndarray, "all"], row_length: int, most: int
) -> EpochPlan:
    """Whole examples laid into rows, the longest first, each into the row that it leaves the least room in (best-fit
    decreasing, Johnson 1973), among a few thousand at a time; `most` in a row, at the most."""
    rows: list[list[int]] = []
    for start in range(0, len(order), _PACKING_CHUNK):
        together = order[start : start + _PACKING_CHUNK]
        together = together[np.argsort(-lengths[together], kind="stable")]
        rows += _best_fit(together.tolist(), lengths[together].tolist(), row_length, most)
    return _plan_of(rows)


def _best_fit(examples: Sequence[int], lengths: Sequence[int], row_length: int, most: int) -> list[list[int]]:
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    """Numbers of the rows by the places they have left."""
    rooms = 0
    """Bit r is set where a row has r places left."""
    for example, length in zip(examples, lengths, strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[number].append(example)
        else:
            room, number = row_length, len(rows)
            rows.append([example])
        if room > length and len(rows[number]) < most:
            with_room[room - length].append(number)
            rooms |= 1 << (room - length)
    return rows


def _shuffled(plan: EpochPlan, generator: np.random.RandomState) -> EpochPlan:
    return _plan_of([plan[row] for row in generator.permutation(len(plan)).tolist()])


def _plan_of(rows: Sequence[Sequence[int] | np.ndarray]) -> EpochPlan:
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return EpochPlan(np.concatenate(rows).astype(np.int64), bounds)


def _grouped(
    order: Int[np.ndarray, "examples"],
    lengths: Int[np.ndarray, "all"],
    batch_size: int,
    generator: np.random.RandomState,
    *,
    longest_first: bool,
) -> Int[np.ndarray, "examples"]:
    """Examples of similar length in each batch, the batches in any order; what fills no batch comes last.

    Args:
        longest_first: Begin with the batch of the longest, so that what does not fit in memory fails at once.
    """
    whole = len(order) // batch_size * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, whole, _GROUPING_CHUNK * batch_size):
        together = order[start : min(start + _GROUPING_CHUNK * batch_size, whole)]
        together = together[np.argsort(-lengths[together], kind="stable")]
        batches += np.split(together, range(batch_size, len(together), batch_size))
    batches = [batches[number] for number in generator.permutation(len(batches))]
    if longest_first and batches:
        longest = max(range(len(batches)), key=lambda number: int(lengths[batches[number]].max()))
        batches[0], batches[longest] = batches[longest], batches[0]
    return np.concatenate([*batches, order[whole:]])


def row_of(examples: Examples, numbers: Sequence[int], row_length: int) -> Row:
    """Whole examples, one after the other, and padding behind them; each begins again at position 0."""
    row = TokenBatch.empty_row(row_length)
    filled = 0
    for segment, number in enumerate(numbers, 1):
        ids, bears_loss = examples[number]
        pairs = len(ids) - 1
        write_segment(row, filled, segment, ids)
        row["loss_weights"][filled : filled + pairs] = bears_loss[1:]
        filled += pairs
    return row


def padded_length(examples: Placed, rows: Sequence[Int[np.ndarray, "_"]], config: ExampleDataConfig) -> int:
    """Length of the rows of a batch that holds these: that of the longest, rounded up to a multiple of `pad_multiple`,
    and `sequence_length` at the most."""
    places = examples.places
    longest = max(int(places[row].sum()) for row in rows)
    return min(-(-longest // config.pad_multiple) * config.pad_multiple, config.sequence_length)
