"""From the records of several sources to the examples of a run: opening, holding out, counting what is not used.
Knows nothing of what an example is."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.errors import UserError
from llama_jax.data.config import ExampleDataConfig
from llama_jax.data.instructions.records import Conversation
from llama_jax.data.instructions.stages import OfStage
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.sources.bad_records import NOTES, check_bad_fraction, counted
from llama_jax.data.sources.documents import BadRecordError, RecordSource, held_out_count, split_indices
from llama_jax.data.sources.record_text import Record

RECORDS_LOOKED_AT = 100
"""From which the format of a source is recognised."""
_TOO_LONG = {"overlong", "prompt_too_long", "cut_to_nothing", "equal_when_cut"}
"""Reasons for which nothing is learned of an example, though in a longer row it would be."""
_MANY = 5000
"""Records that take more than a moment to encode."""


@dataclass
class SourceCounts:
    """What came of the records of a source."""

    name: str
    form: str
    records: int = 0
    examples: int = 0
    """Of which something is learned, for training."""
    held_out: int = 0
    """The same, for validation."""
    truncated: int = 0
    """Examples that were cut and have no end of sequence to learn."""
    unsaid_reasoning: int = 0
    """Turns of these examples whose `reasoning_content` the template does not lay out."""
    bad: Counter[str] = field(default_factory=Counter)
    """Records that cannot be used, by reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Good records of which nothing is learned within the length of a row, by reason."""

    @property
    def dropped(self) -> Counter[str]:
        """All records of which nothing is learned, by reason."""
        return self.bad + self.left_out


@runtime_checkable
class EncodedExamples(Protocol):
    """Examples once they are all there."""

    @property
    def sources(self) -> Int[np.ndarray, "sources_and_one"]: ...
    def digest(self) -> str: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Collected(Protocol):
    """Examples while they are encoded."""

    def __len__(self) -> int: ...
    def end_source(self) -> None: ...
    def examples(self) -> Any: ...


Kept = TypeVar("Kept", bound=EncodedExamples)
Into = TypeVar("Into", bound=Collected)


class ExampleData(ABC, Generic[Kept, Into]):
    """The examples of a run. A kind of data says what its records are and what examples they make.

    Args:
        config: Says what is read.
        layout: Encodes a conversation.
        say: Called with a line for each of the first few records that are not used.

    Raises:
        UserError: a source cannot be opened, has an unknown format, has more bad records than the config allows, or
            nothing to learn from.
    """

    training: Kept
    validation: Kept
    """May hold none."""
    counts: list[SourceCounts]
    """Of each source of the training examples, then of the source for validation, if that is another."""
    prompts: list[tuple[Conversation, str]]
    """Of the first held-out conversations, each up to its last answer, and that answer."""

    def __init__(
        self,
        config: ExampleDataConfig,
        layout: Layout,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.layout = layout
        self._say, self._said, self._bad_records = say, 0, config.bad_records
        weights = [weight for _, weight in config.weighted_sources]
        self.shares = tuple(weight / sum(weights) for weight in weights)
        """Of the examples, by source; they sum to 1."""
        opened = [(name, self._of_stage(name, config)) for name, _ in config.weighted_sources]
        training, validation = self.collected(), self.collected()
        self.counts, self.prompts = [], []
        parts = [
            split_indices(len(records), held_out)
            for (_, records), held_out in zip(opened, _held_out(config, opened), strict=True)
        ]
        set_apart = self.set_apart([(records, others) for (_, records), (_, others) in zip(opened, parts, strict=True)])
        for (name, records), (numbers, others) in zip(opened, parts, strict=True):
            counts = self._begun(name, records)
            numbers = self.without(set_apart, records, counts, numbers)
            counts.examples = self._collect(records, counts, numbers, training)
            counts.held_out = self._collect(records, counts, others, validation, keep_prompts=True)
            self._check(counts, config, of_training=True)
        if (name := config.validation_source) is not None:
            counts = self._begun(name, records := self._of_stage(name, config))
            everything = np.arange(len(records))
            counts.held_out = self._collect(records, counts, everything, validation, keep_prompts=True)
            self._check(counts, config, of_training=False)
        self.training, self.validation = training.examples(), validation.examples()

    @abstractmethod
    def open_source(self, name: str) -> RecordSource[Record]:
        """The records of a source."""

    @abstractmethod
    def form_of(self, name: str, records: RecordSource[Record]) -> str:
        """The name of the format that they are in.

        Raises:
            UserError: it is not known.
        """

    @abstractmethod
    def prompt_of(self, record: Record) -> Conversation | str:
        """What is asked in a record.

        Raises:
            BadRecordError: it cannot be told.
        """

    @abstractmethod
    def collected(self) -> Into:
        """A place for examples, with none in it."""

    @abstractmethod
    def take(self, record: Record, counts: SourceCounts, into: Into, *, keep_prompt: bool) -> None:
        """Put the examples of a record there; one of which nothing is learned is left out and counted.

        Raises:
            BadRecordError: the record cannot be used.
        """

    @abstractmethod
    def description(self) -> list[str]:
        """A line for each source, what came of it, and one for all."""

    def set_apart(self, held_out: Sequence[tuple[RecordSource[Record], Int[np.ndarray, "_"]]]) -> Collection[bytes]:
        """Keys of what is held out, and may not be trained on from any source.

        Args:
            held_out: of each source the records, and the numbers of those that are held out.
        """
        del held_out
        return ()

    def without(
        self,
        set_apart: Collection[bytes],
        records: RecordSource[Record],
        counts: SourceCounts,
        numbers: Int[np.ndarray, "numbers"],
    ) -> Int[np.ndarray, "training"]:
        """Of the numbers of records those that may be trained on; the others are counted."""
        del set_apart, records, counts
        return numbers

    def source_lines(self, cut: str) -> list[str]:
        """A line for each source: what came of it.

        Args:
            cut: how an example was cut.
        """
        several = len(self.shares) > 1
        lines = []
        for number, counts in enumerate(self.counts):
            parts = [f"{counts.name}: {counts.records:,} records ({counts.form})"]
            if number < len(self.shares):
                parts.append(f"{counts.examples:,} examples to train on")
                parts += [f"{self.shares[number]:.1%} of the examples"] * several
            parts += [f"{counts.held_out:,} held out"] * bool(counts.held_out)
            parts += [f"{counts.truncated:,} cut {cut}"] * bool(counts.truncated)
            parts += [f"{number:,} dropped ({reason})" for reason, number in sorted(counts.dropped.items())]
            if unsaid := counts.unsaid_reasoning:
                parts.append(f"reasoning_content of {unsaid:,} turns left out, as the template does not lay it out")
            lines.append(", ".join(parts))
        return lines

    def leave_out(self, counts: SourceCounts, reason: str, line: str) -> None:
        """Count a good record of which nothing is learned, and name it if it is among the first."""
        counts.left_out[reason] += 1
        self._note(f"example left out: {line}")

    def _of_stage(self, name: str, config: ExampleDataConfig) -> RecordSource[Record]:
        records = self.open_source(name)
        if config.stage is None:
            return records
        staged = OfStage(records, config.split, config.stage, self.prompt_of)
        if not len(staged):
            raise UserError(f"data.stage: none of the {len(records):,} records of {name} falls to stage {config.stage}")
        self._say(f"{name}: {len(staged):,} of {len(records):,} records are of stage {config.stage}")
        return staged

    def _begun(self, name: str, records: RecordSource[Record]) -> SourceCounts:
        form = self.form_of(name, records)
        if len(records) > _MANY:
            self._say(f"encoding {len(records):,} records of {name}")
        counts = SourceCounts(name, form, len(records))
        self.counts.append(counts)
        return counts

    def _collect(
        self,
        records: RecordSource[Record],
        counts: SourceCounts,
        numbers: Int[np.ndarray, "numbers"],
        into: Into,
        *,
        keep_prompts: bool = False,
    ) -> int:
        """Read and encode some records of a source; gives the number of examples they make."""
        before = len(into)
        for number in numbers.tolist():
            try:
                self.take(records[number], counts, into, keep_prompt=keep_prompts)
            except BadRecordError as error:
                if self._bad_records == "fail":
                    raise UserError(f"{error} (data.bad_records is fail)") from None
                counts.bad[error.reason] += 1
                self._note(f"bad record skipped: {error}")
        into.end_source()
        return len(into) - before

    def _check(self, counts: SourceCounts, config: ExampleDataConfig, *, of_training: bool) -> None:
        if not (counts.examples if of_training else counts.held_out):
            way_out = ""
            if counts.left_out.keys() & _TOO_LONG:
                way_out = ", or allow longer rows (data.sequence_length)"
            elif not counts.dropped or "prompt_held_out" in counts.left_out:
                way_out = ", or hold out fewer (data.validation_examples)"
            setting = "data.source" if of_training else "data.validation_source"
            raise UserError(
                f"{setting}: none of the {counts.records:,} records of {counts.name} has a token that bears loss "
                f"({counted(counts.dropped) or 'none is to train on'}); repair the source{way_out}"
            )
        check_bad_fraction(counts.name, counts.bad, counts.records, config.max_bad_fraction, kind="records")

    def _note(self, line: str) -> None:
        self._said += 1
        if self._said <= NOTES:
            more = "; further ones are only counted (dropped_records in the metrics)" * (self._said == NOTES)
            self._say(f"{line}{more}")


def end_of_learned(learned: Sequence[bool]) -> int:
    """Place after the last token that is learned; 0 where none is."""
    return next((stop for stop in range(len(learned), 0, -1) if learned[stop - 1]), 0)


def _held_out(config: ExampleDataConfig, opened: Sequence[tuple[str, RecordSource[Record]]]) -> list[int]:
    counts = [len(records) for _, records in opened]
    if config.validation_source is not None:
        return [0] * len(counts)
    if config.validation_examples is None:
        fraction = config.validation_fraction
        return [held_out_count(count, fraction) if fraction else 0 for count in counts]
    wanted, total = config.validation_examples, sum(counts)
    if wanted >= total:
        raise UserError(f"data.validation_examples: {wanted} of {total} records leaves none to train on")
    # The largest remainders make up what rounding down leaves.
    parts = [wanted * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda number: -(wanted * counts[number] % total))
    for number in by_remainder[: wanted - sum(parts)]:
        parts[number] += 1
    return parts
