"""The tasks whose documents are records: multiple choice, the last word, word problems, instructions."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.opening import read_records
from llama_jax.data.sources.record_text import Record
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals import exact_match, instructions, last_word, multiple_choice
from llama_jax.evals.answers import Answerer
from llama_jax.evals.scoring import Request, Scorer, document_scores, encode_pair
from llama_jax.evals.session import Session, bad_records_of
from llama_jax.evals.tasks import (
    AnsweredTask,
    Choices,
    Question,
    Sample,
    ScoredTask,
    few_shot_prefix,
    means,
    read_documents,
)
from llama_jax.inference.completion import encode_prompt
from llama_jax.inference.config import SamplingConfig


def evaluate(
    session: Session, records: Sequence[Record], bad: BadRecords, judge: instructions.Judge | None
) -> dict[str, Any]:
    """The metrics of the task that the settings name, measured on the records; its samples are kept.

    Args:
        bad: where those were noted that could not be read.
        judge: grades answers to instructions.
    """
    config, tokenizer, task = session.config, session.opened.tokenizer, _task(session, judge)
    documents, skipped = read_documents(records, task, bad)
    examples, documents = _few_shot(session, documents, task)
    documents = documents[: config.limit]
    if not documents:
        taken = f"{skipped} records have no answer, {len(examples)} are examples"
        raise UserError(f"--data {config.data}: leaves nothing to measure on; {taken}")
    prefix = few_shot_prefix(examples)
    if isinstance(task, ScoredTask):
        worker = session.scorer()
        measure = functools.partial(_scored_samples, task, prefix, tokenizer, worker)
    else:
        worker, sampling = session.answerer(), SamplingConfig(config.max_new_tokens, temperature=0.0)
        measure = functools.partial(_answered_samples, task, prefix, tokenizer, worker, sampling)
    content = hashlib.sha256(repr((prefix, documents)).encode()).hexdigest()
    samples = session.samples(documents, content, measure)
    counts = {name: sum(sample[name] for sample in samples) for name in ("requests", "truncated")}
    metrics = task.metrics(samples) if is_main_process() else {}  # only there was the judge asked
    left_out = {"skipped": skipped, "dropped_records": dict(bad.reasons)}
    return {"documents": len(documents), **counts, **left_out, **metrics, "programs": worker.program_count}


def _few_shot(session: Session, documents: list[Any], task: ScoredTask | AnsweredTask) -> tuple[list[Any], list[Any]]:
    """Examples for the prompt, and the documents that are left to measure on."""
    config, count = session.config, session.config.num_fewshot
    if config.fewshot_data is None:
        return documents[:count], documents[count:]
    bad = bad_records_of(config, config.fewshot_data, session.say)
    known, _ = read_documents(read_records(config.fewshot_data, bad, "--fewshot_data"), task, bad)
    if len(known) < count:
        raise UserError(f"--fewshot_data {config.fewshot_data}: has {len(known)} examples, not {count}")
    # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
    drawn = np.random.RandomState(config.seed).permutation(len(known))[:count]
    return [known[number] for number in drawn], documents


def _task(session: Session, judge: instructions.Judge | None) -> ScoredTask | AnsweredTask:
    config, chat = session.config, session.config.prompt_format == "chat"
    if config.prompt_format == "auto":
        chat = session.opened.tokenizer.chat_template is not None
    return {
        "multiple_choice": ScoredTask(
            multiple_choice.read_choices,
            multiple_choice.choices_sample,
            functools.partial(means, names=multiple_choice.ACCURACIES),
        ),
        "last_word": ScoredTask(
            functools.partial(last_word.read_passage, text_field=config.text_field),
            last_word.passage_sample,
            last_word.passage_metrics,
        ),
        "exact_match": AnsweredTask(
            exact_match.read_problem,
            exact_match.problem_sample,
            functools.partial(means, names=("exact_match", "exact_match_flexible")),
            exact_match.STOPS,
        ),
        "instructions": AnsweredTask(
            functools.partial(instructions.read_instructions, chat=chat),
            functools.partial(instructions.instruction_sample, judge=judge if is_main_process() else None),
            functools.partial(means, names=("rouge_l",) if judge is None else ("rouge_l", "judge")),
        ),
    }[config.task]


def _scored_samples(
    task: ScoredTask, prefix: str, tokenizer: Tokenizer, scorer: Scorer, documents: Mapping[int, Choices]
) -> Iterator[tuple[int, Sample]]:
    """(number of the document, its sample), in the order in which they become known; `prefix` is put before each."""

    def requests(document: Choices) -> list[Request]:
        return [encode_pair(tokenizer, prefix + document.prompt, choice) for choice in document.choices]

    for number, scores in document_scores(documents, requests, scorer):
        counts = {"requests": len(scores), "truncated": sum(score.truncated for score in scores)}
        yield number, task.sample(documents[number], scores) | counts


def _answered_samples(
    task: AnsweredTask,
    prefix: str,
    tokenizer: Tokenizer,
    answerer: Answerer,
    sampling: SamplingConfig,
    documents: Mapping[int, Question],
) -> Iterator[tuple[int, Sample]]:
    """The same for answers."""
    numbers, questions = list(documents), list(documents.values())
    prompts = [encode_prompt(tokenizer, prefix + question.prompt, chat=question.chat) for question in questions]
    for index, answer in answerer.answers(prompts, sampling, task.stops):
        counts = {"requests": 1, "truncated": int(answer.truncated)}
        yield numbers[index], task.sample(questions[index], answer.text) | counts
