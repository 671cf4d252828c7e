"""Instruction data as it is learned from: all examples of a run, encoded once at its start, and what could not be used.

Sets of instructions are small, so every process holds all of them: 5 bytes a token. Independent of rows."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np

from llama_jax.core.arrays import Bool, Int
from llama_jax.core.errors import UserError
from llama_jax.data.config import InstructionDataConfig, RecordFormat
from llama_jax.data.instructions.records import Conversation, conversation_of, format_of, unknown_format
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.sources.bad_records import NOTES, check_bad_fraction, counted
from llama_jax.data.sources.documents import BadRecordError, RecordSource, held_out_count, split_indices
from llama_jax.data.sources.opening import open_records
from llama_jax.data.sources.record_text import Record

_STARTER, _STARTER_FILE = "starter", "starter_instructions.json"
_RECORDS_LOOKED_AT = 100
"""From which the format of a source is recognised."""
_MANY = 5000
"""Records that take more than a moment to encode."""


@dataclass(frozen=True)
class Examples:
    """Encoded examples of all sources, those of one source together and in its order."""

    ids: Int[np.ndarray, "ids"]
    """Of all examples, one after the other; int32."""
    bears_loss: Bool[np.ndarray, "ids"]
    """Whether an id is learned when it is predicted; never the first of an example."""
    starts: Int[np.ndarray, "examples_and_one"]
    """Place of the first id of each example, and the end of the last."""
    sources: Int[np.ndarray, "sources_and_one"]
    """Number of the first example of each source, and the end of the last."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> tuple[Int[np.ndarray, "ids"], Bool[np.ndarray, "ids"]]:
        """Ids of an example, and which of them bear loss."""
        place = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return self.ids[place], self.bears_loss[place]

    @property
    def lengths(self) -> Int[np.ndarray, "examples"]:
        """Pairs of token and target of each example: one fewer than it has ids."""
        return np.diff(self.starts) - 1

    def digest(self) -> str:
        """SHA-256 of all that is there."""
        digest = hashlib.sha256()
        for part in (self.ids, self.bears_loss, self.starts, self.sources):
            digest.update(str(len(part)).encode() + b"\0" + np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


@dataclass
class SourceCounts:
    """What came of the records of a source."""

    name: str
    form: RecordFormat
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


class InstructionData:
    """The examples of a run.

    Args:
        config: Says what is read.
        layout: Encodes a conversation.
        say: Called with a line for each of the first few records that are not used.

    Raises:
        UserError: a source cannot be opened, has an unknown format, has more bad records than the config allows, or
            nothing to learn from.
    """

    training: Examples
    validation: Examples
    """May hold none."""
    counts: list[SourceCounts]
    """Of each source of the training examples, then of the source for validation, if that is another."""
    prompts: list[tuple[Conversation, str]]
    """Of the first held-out conversations, each up to its last answer, and that answer."""

    def __init__(
        self, config: InstructionDataConfig, layout: Layout, *, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._config, self._layout, self._say = config, layout, say
        self._said = 0
        weights = [weight for _, weight in config.weighted_sources]
        self.shares = tuple(weight / sum(weights) for weight in weights)
        """Of the examples, by source; they sum to 1."""
        opened = [(name, _open(name)) for name, _ in config.weighted_sources]
        training, validation = _Collected(), _Collected()
        self.counts, self.prompts = [], []
        for (name, records), held_out in zip(opened, _held_out(config, opened), strict=True):
            numbers, others = split_indices(len(records), held_out)
            counts = self._begun(name, records)
            counts.examples = self._collect(records, counts, numbers, training)
            counts.held_out = self._collect(records, counts, others, validation, keep_prompts=True)
            self._check(counts, of_training=True)
        if (name := config.validation_source) is not None:
            counts = self._begun(name, records := _open(name))
            everything = np.arange(len(records))
            counts.held_out = self._collect(records, counts, everything, validation, keep_prompts=True)
            self._check(counts, of_training=False)
        self.training, self.validation = training.examples(), validation.examples()

    def description(self) -> list[str]:
        """A line for each source: what came of it."""
        several = len(self.shares) > 1
        lines = []
        for number, counts in enumerate(self.counts):
            parts = [f"{counts.name}: {counts.records:,} records ({counts.form})"]
            if number < len(self.shares):
                parts.append(f"{counts.examples:,} examples to train on")
                parts += [f"{self.shares[number]:.1%} of the examples"] * several
            parts += [f"{counts.held_out:,} held out"] * bool(counts.held_out)
            parts += [f"{counts.truncated:,} cut at {self._config.sequence_length:,} tokens"] * bool(counts.truncated)
            parts += [f"{number:,} dropped ({reason})" for reason, number in sorted(counts.dropped.items())]
            if unsaid := counts.unsaid_reasoning:
                parts.append(f"reasoning_content of {unsaid:,} turns left out, as the template does not lay it out")
            lines.append(", ".join(parts))
        ids = len(self.training.ids)
        learned = int(self.training.bears_loss.sum())
        longest = int(self.training.lengths.max())
        return [
            *lines,
            f"template {self._layout.name}: {ids:,} tokens, {learned:,} of them bear loss; the longest example takes "
            f"{longest:,} places of a row",
        ]

    def _begun(self, name: str, records: RecordSource[Record]) -> SourceCounts:
        form = self._config.format if self._config.format != "auto" else _form(name, records)
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
        into: "_Collected",
        *,
        keep_prompts: bool = False,
    ) -> int:
        """Read and encode some records of a source; gives the number of examples they make."""
        before = len(into)
        for number in numbers.tolist():
            try:
                record = records[number]
                conversation = conversation_of(record, counts.form)
                ids, learned = self._layout.encode(conversation, record.place)
            except BadRecordError as error:
                if self._config.bad_records == "fail":
                    raise UserError(f"{error} (data.bad_records is fail)") from None
                counts.bad[error.reason] += 1
                self._note(f"bad record skipped: {error}")
                continue
            if self._fitted(counts, record.place, ids, learned, into):
                self._used(counts, conversation, keep_prompt=keep_prompts)
        into.end_source()
        return len(into) - before

    def _fitted(
        self, counts: SourceCounts, place: str, ids: list[int], learned: list[bool], into: "_Collected"
    ) -> bool:
        """Cut an example to the length of a row and keep it; False where nothing is left to learn."""
        most = self._config.sequence_length + 1
        # What comes after the last answer teaches nothing.
        end = _end_of_learned(learned)
        if self._config.train_on_prompt:
            learned = [True] * end
        learned[0] = False
        is_long = end > most
        if is_long and self._config.overlong == "drop":
            counts.left_out["overlong"] += 1
            self._note(f"example left out: {place}: has {end} tokens, more than data.sequence_length allows")
            return False
        if is_long:
            end = _end_of_learned(learned[:most])
        if end < 2:
            counts.left_out["prompt_too_long"] += 1
            self._note(f"example left out: {place}: its answer begins after data.sequence_length {most - 1} tokens")
            return False
        counts.truncated += is_long
        into.add(ids[:end], learned[:end])
        return True

    def _used(self, counts: SourceCounts, conversation: Conversation | str, *, keep_prompt: bool) -> None:
        if isinstance(conversation, str):
            return
        if not self._layout.writes_reasoning:
            counts.unsaid_reasoning += sum(bool(turn.reasoning) for turn in conversation)
        if keep_prompt:
            last = max(number for number, turn in enumerate(conversation) if turn.role == "assistant")
            self.prompts.append((conversation[:last], conversation[last].content))

    def _check(self, counts: SourceCounts, *, of_training: bool) -> None:
        if not (counts.examples if of_training else counts.held_out):
            raise UserError(
                f"data.source: none of the {counts.records:,} records of {counts.name} has a token that bears loss "
                f"({counted(counts.dropped) or 'none is to train on'}); repair the source, or allow longer rows "
                "(data.sequence_length)"
            )
        check_bad_fraction(counts.name, counts.bad, counts.records, self._config.max_bad_fraction, kind="records")

    def _note(self, line: str) -> None:
        self._said += 1
        if self._said <= NOTES:
            more = "; further ones are only counted (dropped_records in the metrics)" * (self._said == NOTES)
            self._say(f"{line}{more}")


class _Collected:
    """Examples while they are encoded."""

    def __init__(self) -> None:
        self._ids, self._learned = array("i"), bytearray()
        self._starts, self._sources = array("q", [0]), [0]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, ids: Sequence[int], learned: Sequence[bool]) -> None:
        self._ids.extend(ids)
        self._learned.extend(learned)
        self._starts.append(len(self._ids))

    def end_source(self) -> None:
        self._sources.append(len(self))

    def examples(self) -> Examples:
        return Examples(
            ids=np.array(self._ids, np.int32),
            bears_loss=np.array(self._learned, np.uint8).astype(np.bool_),
            starts=np.array(self._starts, np.int64),
            sources=np.array(self._sources, np.int64),
        )


def _end_of_learned(learned: Sequence[bool]) -> int:
    """Place after the last token that is learned; 0 where none is."""
    return next((stop for stop in range(len(learned), 0, -1) if learned[stop - 1]), 0)


class _StarterRecords(list[Record]):
    def identity(self) -> str:
        return _STARTER


def starter_records() -> _StarterRecords:
    """The small set that comes with the package, so that fine-tuning needs no download: instructions with and without
    input, and an answer to each, in Alpaca's format."""
    values = json.loads((resources.files("llama_jax.data.instructions") / _STARTER_FILE).read_bytes())
    return _StarterRecords(Record(f"{_STARTER}[{index}]", each) for index, each in enumerate(values))


def _open(name: str) -> RecordSource[Record]:
    return starter_records() if name == _STARTER else open_records(name)


def _form(name: str, records: RecordSource[Record]) -> RecordFormat:
    """The format of the first record that is of one."""
    fields: list[str] = []
    for number in range(min(len(records), _RECORDS_LOOKED_AT)):
        try:
            values = records[number].values
        except BadRecordError:
            continue
        if (form := format_of(values)) is not None:
            return form
        fields = fields or list(values)
    raise unknown_format(name, fields)


def _held_out(config: InstructionDataConfig, opened: Sequence[tuple[str, RecordSource[Record]]]) -> list[int]:
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
