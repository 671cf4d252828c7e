"""Compared, judged and scored answers as they are learned from: all examples of a run, encoded once at its start, and
what could not be used. Every process holds all of them. Independent of rows."""

import dataclasses
import functools
import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from llama_jax.core.arrays import Bool, Float, Int
from llama_jax.data.config import PreferenceDataConfig
from llama_jax.data.instructions.example_data import RECORDS_LOOKED_AT, ExampleData, SourceCounts, end_of_learned
from llama_jax.data.instructions.records import Conversation
from llama_jax.data.instructions.stages import prompt_key
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.preferences.records import (
    Compared,
    Kind,
    compared,
    kind_of_fields,
    shared_opening,
    unknown_format,
)
from llama_jax.data.sources.documents import BadRecordError, RecordSource
from llama_jax.data.sources.opening import open_records
from llama_jax.data.sources.record_text import Record

_STARTER, _STARTER_FILE = "starter", "starter_preferences.json"
_LEFT_OUT = ("empty", "no_score")
"""Reasons for which a good record teaches nothing."""


@dataclass(frozen=True)
class CompletionExamples:
    """Encoded examples of all sources, those of one source together and in its order; each has M sequences, prompts
    with one answer each."""

    members: int
    """M."""
    ids: Int[np.ndarray, "ids"]
    """Of all sequences, one after the other; int32."""
    bears_loss: Bool[np.ndarray, "ids"]
    """Whether an id is of the answer; never the first of a sequence."""
    starts: Int[np.ndarray, "sequences_and_one"]
    """Place of the first id of each sequence, and the end of the last."""
    labels: Float[np.ndarray, "examples"]
    """See `core.batches.completion_batch`."""
    sources: Int[np.ndarray, "sources_and_one"]
    """Number of the first example of each source, and the end of the last."""
    reference: Float[np.ndarray, "examples members"]
    """log p of each answer under the reference model, in nats; 0 until known."""
    shared: Int[np.ndarray, "examples"]
    """How many ids of its prompt an example has in a row once, and not in each of its sequences."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> list[tuple[Int[np.ndarray, "ids"], Bool[np.ndarray, "ids"]]]:
        """Of each sequence of an example the ids, and which of them are of the answer."""
        bounds = self.starts[number * self.members : (number + 1) * self.members + 1].tolist()
        places = [slice(*each) for each in itertools.pairwise(bounds)]
        return [(self.ids[place], self.bears_loss[place]) for place in places]

    @property
    def places(self) -> Int[np.ndarray, "examples"]:
        """Places that each example takes in a row."""
        return self._measured[0]

    @property
    def lengths(self) -> Int[np.ndarray, "examples members"]:
        """Tokens of each answer, the one that ends it included."""
        return self._measured[1]

    @functools.cached_property
    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        places = np.diff(self.starts[:: self.members]) - (self.members - 1) * self.shared
        before = np.concatenate([[0], np.cumsum(self.bears_loss)])
        return places, np.diff(before[self.starts]).reshape(-1, self.members)

    def digest(self) -> str:
        """SHA-256 of all that is there, but for what the reference model says."""
        digest = hashlib.sha256(str(self.members).encode())
        for part in (self.ids, self.bears_loss, self.starts, self.labels, self.sources, self.shared):
            digest.update(str(len(part)).encode() + b"\0" + np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


class CollectedCompletions:
    """Examples while they are encoded."""

    def __init__(self, members: int) -> None:
        self._members = members
        self._ids, self._learned, self._labels = array("i"), bytearray(), array("f")
        self._starts, self._sources = array("q", [0]), [0]

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, sequences: Sequence[tuple[Sequence[int], Sequence[bool]]], label: float) -> None:
        """Put an example there."""
        for ids, learned in sequences:
            self._ids.extend(ids)
            self._learned.extend(learned)
            self._starts.append(len(self._ids))
        self._labels.append(label)

    def end_source(self) -> None:
        """What follows is of another source."""
        self._sources.append(len(self))

    def examples(self) -> CompletionExamples:
        """All of them."""
        return CompletionExamples(
            members=self._members,
            ids=np.array(self._ids, np.int32),
            bears_loss=np.array(self._learned, np.uint8).astype(np.bool_),
            starts=np.array(self._starts, np.int64),
            labels=np.array(self._labels, np.float32),
            sources=np.array(self._sources, np.int64),
            reference=np.zeros((len(self), self._members), np.float32),
            shared=np.zeros(len(self), np.int64),
        )


def with_shared_prompts(examples: CompletionExamples) -> CompletionExamples:
    """The same, with each prompt once in a row: what all sequences of an example begin with, but for its last id, which
    stays with each answer that it predicts the first id of."""

    def shared(number: int) -> int:
        sequences = examples[number]
        opening = shared_opening(*(ids.tolist() for ids, _ in sequences))
        return max(0, min(opening, *(int(np.argmax(learned)) for _, learned in sequences)) - 1)

    return dataclasses.replace(examples, shared=np.array(list(map(shared, range(len(examples)))), np.int64))


class PreferenceData(ExampleData[CompletionExamples, CollectedCompletions]):
    """The examples of a run; see `ExampleData`.

    Args:
        kind: What is to be learned. Labels are made of pairs, too: a good and a bad answer of each.
        most: Tokens of a sequence, at the most.
    """

    def __init__(
        self,
        config: PreferenceDataConfig,
        kind: Kind,
        layout: Layout,
        most: int,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._kind: Kind = kind
        self._config, self._most = config, most
        self._members = 2 if kind == "pairs" else 1
        super().__init__(config, layout, say=say)

    def open_source(self, name: str) -> RecordSource[Record]:
        """The records of a source."""
        return starter_records() if name == _STARTER else open_records(name)

    def form_of(self, name: str, records: RecordSource[Record]) -> str:
        """What the first record that says anything of answers says of them."""
        fields: list[str] = []
        for number in range(min(len(records), RECORDS_LOOKED_AT)):
            try:
                values = records[number].values
            except BadRecordError:
                continue
            found = kind_of_fields(values)
            if found is not None and (found == self._kind or (found, self._kind) == ("pairs", "labels")):
                return found
            fields = fields or list(values)
        raise unknown_format(name, fields, self._kind)

    def prompt_of(self, record: Record) -> Conversation:
        """What the answers of a record are to."""
        kind = kind_of_fields(record.values)
        if kind is None:
            raise BadRecordError("missing_field", record.place, "its fields are not those of preferences")
        return compared(record, kind).prompt

    def set_apart(self, held_out: Sequence[tuple[RecordSource[Record], Int[np.ndarray, "_"]]]) -> Collection[bytes]:
        """Keys of the prompts."""
        return {prompt_key(records, number, self.prompt_of) for records, of in held_out for number in of.tolist()}

    def without(
        self,
        set_apart: Collection[bytes],
        records: RecordSource[Record],
        counts: SourceCounts,
        numbers: Int[np.ndarray, "numbers"],
    ) -> Int[np.ndarray, "training"]:
        """Those with a prompt that is not held out."""
        if not set_apart:
            return numbers
        kept = [each for each in numbers.tolist() if prompt_key(records, each, self.prompt_of) not in set_apart]
        if shared := len(numbers) - len(kept):
            counts.left_out["prompt_held_out"] += shared
        return np.array(kept, np.int64)

    def collected(self) -> CollectedCompletions:
        """A place for examples, with none in it."""
        return CollectedCompletions(self._members)

    def description(self) -> list[str]:
        """A line for each source, what came of it, and one for all."""
        cut = {"keep_start": "to their first", "keep_end": "to their last", "drop": "at"}[self._config.overlong]
        lengths, ids = self.training.lengths, len(self.training.ids)
        return [
            *self.source_lines(f"{cut} {self._most:,} tokens"),
            f"template {self.layout.name}: {ids:,} tokens, {int(lengths.sum()):,} of them of answers; an answer has "
            f"{lengths.mean():.0f} tokens on average, and an example takes at most {int(self.training.places.max()):,} "
            "places of a row",
        ]

    def take(self, record: Record, counts: SourceCounts, into: CollectedCompletions, *, keep_prompt: bool) -> None:
        """Encode a record as one example, or a pair as two where labels are wanted."""
        try:
            found = compared(record, "pairs" if counts.form == "pairs" else self._kind)
        except BadRecordError as error:
            if error.reason not in _LEFT_OUT:
                raise
            self.leave_out(counts, error.reason, str(error))
            return
        if counts.form == "pairs" and found.answers[0] == found.answers[1]:
            self.leave_out(counts, "equal", f"{record.place}: chosen and rejected are the same")
            return
        parts = [found]
        if len(found.answers) > self._members:
            parts = [Compared(found.prompt, (found.answers[number],), 1.0 - number) for number in (0, 1)]
        kept = [self._fitted(counts, record.place, part, into) for part in parts]
        is_good = self._kind != "labels" or parts[0].label > 0
        if keep_prompt and any(kept) and is_good:
            self.prompts.append((found.prompt, found.answers[0][0].content))

    def _fitted(self, counts: SourceCounts, place: str, found: Compared, into: CollectedCompletions) -> bool:
        """Cut the sequences of an example to what is allowed and keep it; False where nothing is left to learn."""
        sequences = [self._sequence(found.prompt, answer, place) for answer in found.answers]
        longest = max(len(ids) for ids, _ in sequences)
        if longest > self._most:
            if self._config.overlong == "drop":
                line = f"{place}: {longest} tokens are more than the {self._most} that a prompt with an answer may have"
                self.leave_out(counts, "overlong", f"{line} (data.max_length, data.overlong)")
                return False
            sequences = [self._cut(*sequence) for sequence in sequences]
            if not all(any(learned) for _, learned in sequences):
                line = f"{place}: nothing is left of an answer within {self._most} tokens"
                self.leave_out(counts, "cut_to_nothing", line)
                return False
        if len(sequences) == 2 and sequences[0][0] == sequences[1][0]:
            reason = "equal_when_cut" if longest > self._most else "equal"
            self.leave_out(counts, reason, f"{place}: chosen and rejected have the same tokens")
            return False
        counts.truncated += longest > self._most
        into.add(sequences, found.label)
        return True

    def _sequence(self, prompt: Conversation, answer: Conversation, place: str) -> tuple[list[int], list[bool]]:
        ids, learned = self.layout.encode((*prompt, *answer), place)
        end = end_of_learned(learned)  # a reward model is read where the answer ends
        return ids[:end], [False, *learned[1:end]]

    def _cut(self, ids: list[int], learned: list[bool]) -> tuple[list[int], list[bool]]:
        if self._config.overlong == "keep_start":
            return ids[: self._most], learned[: self._most]
        return ids[-self._most :], [False, *learned[-self._most :][1:]]


def mismatched(examples: CompletionExamples, groups: Sequence[Int[np.ndarray, "_"]], most: int) -> CompletionExamples:
    """Judged answers, each with a second sequence beside it: its prompt with the answer of the next example of its
    group, the last with that of the first; what KTO estimates its KL with (arXiv:2402.01306, section 4.1).

    Args:
        groups: Numbers of the examples that are learned from together, each example in one of them. In a group of one
            it is the answer of the first example of all.
        most: Tokens of a sequence, at the most; a longer one is cut to its first.
    """
    following = np.zeros(len(examples), np.int64)
    for group in groups:
        following[group] = np.roll(group, -1) if len(group) > 1 else groups[0][:1]
    collected = CollectedCompletions(2)
    for number, other in enumerate(following.tolist()):
        (ids, learned), (of_other, learned_of_other) = examples[number][0], examples[other][0]
        asked, answered = int(np.argmax(learned)), int(np.argmax(learned_of_other))
        second = [*ids[:asked].tolist(), *of_other[answered:].tolist()][:most]
        sequences = [(ids.tolist(), learned.tolist()), (second, [place >= asked for place in range(len(second))])]
        collected.add(sequences, float(examples.labels[number]))
        if number + 1 in examples.sources[1:]:
            collected.end_source()
    return collected.examples()


class _StarterRecords(list[Record]):
    def identity(self) -> str:
        return _STARTER


def starter_records() -> _StarterRecords:
    """The small set that comes with the package, so that learning from preferences needs no download: questions with an
    answer to the point and a worse one."""
    values = json.loads((resources.files("llama_jax.data.preferences") / _STARTER_FILE).read_bytes())
    return _StarterRecords(Record(f"{_STARTER}[{index}]", each) for index, each in enumerate(values))
