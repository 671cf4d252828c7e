"""Instruction data as it is learned from: all examples of a run, encoded once at its start, and what could not be used.

Sets of instructions are small, so every process holds all of them: 5 bytes a token. Independent of rows."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import cast

import numpy as np

from llama_jax.core.arrays import Bool, Int
from llama_jax.data.config import InstructionDataConfig, RecordFormat
from llama_jax.data.instructions.example_data import RECORDS_LOOKED_AT, ExampleData, SourceCounts, end_of_learned
from llama_jax.data.instructions.records import Conversation, conversation_of, format_of, unknown_format
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.sources.documents import BadRecordError, RecordSource
from llama_jax.data.sources.opening import open_records
from llama_jax.data.sources.record_text import Record

_STARTER, _STARTER_FILE = "starter", "starter_instructions.json"


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
    def places(self) -> Int[np.ndarray, "examples"]:
        """Places that each example takes in a row, one for a pair of token and target: one fewer than it has ids."""
        return np.diff(self.starts) - 1

    def digest(self) -> str:
        """SHA-256 of all that is there."""
        digest = hashlib.sha256()
        for part in (self.ids, self.bears_loss, self.starts, self.sources):
            digest.update(str(len(part)).encode() + b"\0" + np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


class InstructionData(ExampleData[Examples, "_Collected"]):
    """Examples of instructions and answers; see `ExampleData`."""

    def __init__(
        self, config: InstructionDataConfig, layout: Layout, *, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._config = config
        super().__init__(config, layout, say=say)

    def open_source(self, name: str) -> RecordSource[Record]:
        """The records of a source."""
        return starter_records() if name == _STARTER else open_records(name)

    def form_of(self, name: str, records: RecordSource[Record]) -> str:
        """The format that the config names, or that of the first record that is of one."""
        return self._config.format if self._config.format != "auto" else self._recognized(name, records)

    def format_of(self, fields: Iterable[str]) -> str | None:
        """The format whose fields are all there."""
        return format_of(fields)

    def conversation(self, record: Record, form: str) -> Conversation | str:
        """The conversation in a record, or its text."""
        return conversation_of(record, cast("RecordFormat", form))

    def form(self, record: Record) -> str:
        """The format of one record.

        Raises:
            BadRecordError: it is not known.
        """
        form = self._config.format if self._config.format != "auto" else self.format_of(record.values)
        if form is None:
            raise BadRecordError("missing_field", record.place, "its fields are not those of a known format")
        return form

    def prompt_of(self, record: Record) -> Conversation | str:
        """What comes before the last answer, or the text."""
        conversation = self.conversation(record, self.form(record))
        return conversation if isinstance(conversation, str) else conversation[: _last_answer(conversation)]

    def _recognized(self, name: str, records: RecordSource[Record]) -> str:
        """The format of the first record that is of one."""
        fields: list[str] = []
        for number in range(min(len(records), RECORDS_LOOKED_AT)):
            try:
                values = records[number].values
            except BadRecordError:
                continue
            if (form := self.format_of(values)) is not None:
                return form
            fields = fields or list(values)
        raise unknown_format(name, fields)

    def collected(self) -> "_Collected":
        """A place for examples, with none in it."""
        return _Collected()

    def description(self) -> list[str]:
        """A line for each source, what came of it, and one for all."""
        ids = len(self.training.ids)
        learned = int(self.training.bears_loss.sum())
        longest = int(self.training.places.max())
        return [
            *self.source_lines(f"at {self._config.sequence_length:,} tokens"),
            f"template {self.layout.name}: {ids:,} tokens, {learned:,} of them bear loss; the longest example takes "
            f"{longest:,} places of a row",
        ]

    def take(self, record: Record, counts: SourceCounts, into: "_Collected", *, keep_prompt: bool) -> None:
        """Encode a record as one example, cut to the length of a row."""
        conversation = self.conversation(record, counts.form)
        ids, learned = self.layout.encode(conversation, record.place)
        if self._fitted(counts, record.place, ids, learned, into):
            self._used(counts, conversation, keep_prompt=keep_prompt)

    def _fitted(
        self, counts: SourceCounts, place: str, ids: list[int], learned: list[bool], into: "_Collected"
    ) -> bool:
        """Cut an example to the length of a row and keep it; False where nothing is left to learn."""
        most = self._config.sequence_length + 1
        # What comes after the last answer teaches nothing.
        end = end_of_learned(learned)
        if self._config.train_on_prompt:
            learned = [True] * end
        learned[0] = False
        is_long = end > most
        if is_long and self._config.overlong == "drop":
            self.leave_out(counts, "overlong", f"{place}: has {end} tokens, more than data.sequence_length allows")
            return False
        if is_long:
            end = end_of_learned(learned[:most])
        if end < 2:
            line = f"{place}: its answer begins after data.sequence_length {most - 1} tokens"
            self.leave_out(counts, "prompt_too_long", line)
            return False
        counts.truncated += is_long
        into.add(ids[:end], learned[:end])
        return True

    def _used(self, counts: SourceCounts, conversation: Conversation | str, *, keep_prompt: bool) -> None:
        if isinstance(conversation, str):
            return
        if not self.layout.writes_reasoning:
            counts.unsaid_reasoning += sum(bool(turn.reasoning) for turn in conversation)
        if keep_prompt:
            last = _last_answer(conversation)
            self.prompts.append((conversation[:last], conversation[last].content))


def _last_answer(conversation: Conversation) -> int:
    return max(number for number, turn in enumerate(conversation) if turn.role == "assistant")


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


class _StarterRecords(list[Record]):
    def identity(self) -> str:
        return _STARTER


def starter_records() -> _StarterRecords:
    """The small set that comes with the package, so that fine-tuning needs no download: instructions with and without
    input, and an answer to each, in Alpaca's format."""
    values = json.loads((resources.files("llama_jax.data.instructions") / _STARTER_FILE).read_bytes())
    return _StarterRecords(Record(f"{_STARTER}[{index}]", each) for index, each in enumerate(values))
