"""The tasks whose documents are records: multiple choice, the last word, word problems, instructions."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.data.sources.opening import read_records
from llama_jax.data.sources.record_text import Record
from llama_jax.evals import exact_match, instructions, last_word, multiple_choice
from llama_jax.evals.config import EvaluateConfig
from llama_jax.evals.session import Session
from llama_jax.evals.tasks import (
    AnsweredTask,
    ScoredTask,
    answered_samples,
    few_shot_prefix,
    read_documents,
    scored_samples,
)


def evaluate(session: Session, records: Sequence[Record], judge: instructions.Judge | None) -> dict[str, Any]:
    """The metrics of the task that the settings name, measured on the records; its samples are kept.

    Args:
        judge: grades answers to instructions.
    """
    config, tokenizer, task = session.config, session.opened.tokenizer, _task(session, judge)
    documents, skipped = read_documents(records, task)
    examples, documents = _few_shot(config, documents, task)
    documents = documents[: config.limit]
    if not documents:
        raise UserError(f"--data {config.data}: leaves nothing to measure on; {skipped} records have no answer")
    prefix = few_shot_prefix(examples)
    if isinstance(task, ScoredTask):
        worker = session.scorer()
        measure = functools.partial(scored_samples, task=task, prefix=prefix, tokenizer=tokenizer, scorer=worker)
    else:
        worker = session.answerer()
        measure = functools.partial(
            answered_samples,
            task=task,
            prefix=prefix,
            tokenizer=tokenizer,
            answerer=worker,
            max_new_tokens=config.max_new_tokens,
        )
    content = hashlib.sha256(repr((prefix, documents)).encode()).hexdigest()
    samples = session.samples(documents, content, measure)
    counts = {name: sum(sample[name] for sample in samples) for name in ("requests", "truncated")}
    metrics = task.metrics(samples) if is_main_process() else {}  # only there was the judge asked
    return {"documents": len(documents), **counts, "skipped": skipped, **metrics, "programs": len(worker.programs)}


def _few_shot(
    config: EvaluateConfig, documents: list[Any], task: ScoredTask | AnsweredTask
) -> tuple[list[Any], list[Any]]:
    """Examples for the prompt, and the documents that are left to measure on."""
    count = config.num_fewshot
    if config.fewshot_data is None:
        return documents[:count], documents[count:]
    known, _ = read_documents(read_records(config.fewshot_data), task)
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
            multiple_choice.read_choices, multiple_choice.choices_sample, multiple_choice.choices_metrics
        ),
        "last_word": ScoredTask(
            functools.partial(last_word.read_passage, text_field=config.text_field),
            last_word.passage_sample,
            last_word.passage_metrics,
        ),
        "exact_match": AnsweredTask(
            exact_match.read_problem, exact_match.problem_sample, exact_match.problem_metrics, exact_match.STOPS
        ),
        "instructions": AnsweredTask(
            functools.partial(instructions.read_instructions, chat=chat),
            functools.partial(instructions.instruction_sample, judge=judge if is_main_process() else None),
            instructions.instruction_metrics,
        ),
    }[config.task]
