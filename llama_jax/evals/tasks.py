"""What a task is: how a record becomes documents to score or to answer, and how the outcome becomes a sample and the
samples metrics. A task is made of pure functions, independent of any model."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.record_text import Record
from llama_jax.evals.scoring import Score

Sample: TypeAlias = dict[str, Any]
"""What is known of one document after it was measured; JSON values."""


@dataclass(frozen=True)
class Choices:
    """A text and the ways in which it may continue."""

    prompt: str
    choices: tuple[str, ...]
    """Continuations, with the space that parts them from the prompt."""
    gold: int
    """Number of the right one."""

    @property
    def solved(self) -> str:
        """The document as an example of few-shot prompting."""
        return self.prompt + self.choices[self.gold]


@dataclass(frozen=True)
class Question:
    """A text to be continued freely, and what is to be found."""

    prompt: str
    reference: str
    chat: bool = False
    """Whether the prompt is a message, to be put into the model's chat template."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """What the sample repeats of the record."""

    @property
    def solved(self) -> str:
        """The document as an example of few-shot prompting."""
        return f"{self.prompt} {self.reference}"


Metrics: TypeAlias = Callable[[Sequence[Sample]], dict[str, float]]


@dataclass(frozen=True)
class ScoredTask:
    """A task that compares the likelihoods of given texts."""

    read: Callable[[dict[str, Any]], list[Choices]]
    """Documents of a record, none if it does not say what is right; `ValueError` says what is wrong with it."""
    sample: Callable[[Choices, Sequence[Score]], Sample]
    metrics: Metrics


@dataclass(frozen=True)
class AnsweredTask:
    """A task that looks at what the model writes."""

    read: Callable[[dict[str, Any]], list[Question]]
    """See `ScoredTask.read`."""
    sample: Callable[[Question, str], Sample]
    metrics: Metrics
    stops: tuple[str, ...] = ()
    """An answer ends where one of these begins."""


def read_documents(
    records: Sequence[Record], task: ScoredTask | AnsweredTask, bad: BadRecords
) -> tuple[list[Any], int]:
    """The documents of all records, and the number of records that were skipped since they have none.

    Args:
        bad: Where the records are noted that are not of the task's form, beside those that could not be read.

    Raises:
        UserError: too many records are bad.
    """
    documents, skipped, total = [], 0, len(records) + bad.total
    for record in records:
        try:
            found = task.read(record.values)
        except ValueError as error:
            bad.note(BadRecordError("wrong_form", record.place, str(error)))
            continue
        documents += found
        skipped += not found
    bad.check(total, "records")
    return documents, skipped


def text_of(record: Mapping[str, Any], *names: str) -> str:
    """The text in the first of the named fields that the record has.

    Raises:
        ValueError: it has none of them, or what it has is not text.
    """
    name = next((name for name in names if name in record), None)
    if name is None:
        fields = ", ".join(list(record)[:8]) or "no field"
        raise ValueError(f"no field '{names[0]}'; it has {fields}")
    if not isinstance(record[name], str):
        raise ValueError(f"field '{name}' is of type {type(record[name]).__name__}; it must be text")
    return record[name]


def few_shot_prefix(examples: Sequence[Choices | Question]) -> str:
    """Solved documents before a prompt, a blank line after each, as in lm-evaluation-harness."""
    return "".join(f"{example.solved}\n\n" for example in examples)


def means(samples: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """The mean of each named field, and as `<name>_stderr` its standard error, from the sample's standard deviation
    (n - 1, as lm-evaluation-harness). One sample tells nothing of the error: it is 0."""
    results = {}
    for name in names:
        values = [float(sample[name]) for sample in samples]
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        results[name] = mean
        results[f"{name}_stderr"] = math.sqrt(squares / max(1, len(values) - 1) / len(values))
    return results
