"""What a task is: how a record becomes documents to score or to answer, and how the outcome becomes a sample and the
samples metrics. A task is made of pure functions, independent of any model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from llama_jax.core.errors import UserError
from llama_jax.data.sources.record_text import Record
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.answers import Answerer
from llama_jax.evals.scoring import Request, Score, Scorer, encode_pair
from llama_jax.inference.completion import encode_prompt
from llama_jax.inference.config import SamplingConfig

REQUESTS_CHUNK = 16384
"""Requests made and sorted at a time: enough for full batches of one length, without holding all of a large task."""

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


Document = TypeVar("Document")
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


def read_documents(records: Sequence[Record], task: ScoredTask | AnsweredTask) -> tuple[list[Any], int]:
    """The documents of all records, and the number of records that were skipped since they have none.

    Raises:
        UserError: a record is not of the task's form; names its place.
    """
    documents, skipped = [], 0
    for record in records:
        try:
            found = task.read(record.values)
        except ValueError as error:
            raise UserError(f"{record.place}: {error}") from None
        documents += found
        skipped += not found
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


def scored_samples(
    documents: Mapping[int, Choices], task: ScoredTask, prefix: str, tokenizer: Tokenizer, scorer: Scorer
) -> Iterator[tuple[int, Sample]]:
    """(number of the document, its sample), in the order in which they become known; `prefix` is put before each."""

    def requests(document: Choices) -> list[Request]:
        return [encode_pair(tokenizer, prefix + document.prompt, choice) for choice in document.choices]

    for number, scores in document_scores(documents, requests, scorer):
        counts = {"requests": len(scores), "truncated": sum(score.truncated for score in scores)}
        yield number, task.sample(documents[number], scores) | counts


def answered_samples(
    documents: Mapping[int, Question],
    task: AnsweredTask,
    prefix: str,
    tokenizer: Tokenizer,
    answerer: Answerer,
    max_new_tokens: int,
) -> Iterator[tuple[int, Sample]]:
    """The same for answers, which are greedy."""
    numbers = list(documents)
    questions = [documents[number] for number in numbers]
    prompts = [encode_prompt(tokenizer, prefix + question.prompt, chat=question.chat) for question in questions]
    sampling = SamplingConfig(max_new_tokens, temperature=0.0)
    for index, answer in answerer.answers(prompts, sampling, task.stops):
        counts = {"requests": 1, "truncated": int(answer.truncated)}
        yield numbers[index], task.sample(questions[index], answer.text) | counts


def document_scores(
    documents: Mapping[int, Document], requests_of: Callable[[Document], Sequence[Request]], scorer: Scorer
) -> Iterator[tuple[int, list[Score]]]:
    """(number of the document, scores of its requests), in the order in which they become known."""
    waiting: list[tuple[int, Request]] = []
    for number, document in documents.items():
        waiting += ((number, request) for request in requests_of(document))
        if len(waiting) >= REQUESTS_CHUNK:
            yield from _whole_documents(waiting, scorer)
            waiting = []
    yield from _whole_documents(waiting, scorer)


def _whole_documents(waiting: Sequence[tuple[int, Request]], scorer: Scorer) -> Iterator[tuple[int, list[Score]]]:
    scores: dict[int, dict[int, Score | None]] = {}
    for index, (number, _) in enumerate(waiting):
        scores.setdefault(number, {})[index] = None
    for index, score in scorer.scores([request for _, request in waiting]):
        number = waiting[index][0]
        scores[number][index] = score
        known = [score for score in scores[number].values() if score is not None]
        if len(known) == len(scores[number]):
            yield number, known
