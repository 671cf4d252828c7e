"""Measure a model: `python -m llama_jax.evaluate`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("evaluate")

import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

import jax
import numpy as np
from etils import epath

from llama_jax.checkpoints.opening import OpenModel, find_model, open_model
from llama_jax.config import EvaluateConfig
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.distributed import is_main_process, start_up
from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.core.mesh import make_mesh
from llama_jax.core.run import load_config
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import text_bytes, texts_of, validation_batches, zlib_bits_per_byte
from llama_jax.data.rows.mixture import open_mixture
from llama_jax.data.sources.documents import Documents, SelectedDocuments
from llama_jax.data.sources.opening import open_source, read_records
from llama_jax.data.sources.record_text import Record
from llama_jax.evals import exact_match, instructions, last_word, multiple_choice
from llama_jax.evals.answers import Answerer
from llama_jax.evals.perplexity import window_samples, word_perplexity
from llama_jax.evals.progress import shown_progress
from llama_jax.evals.samples import KeptSamples, output_file
from llama_jax.evals.scoring import Scorer
from llama_jax.evals.tasks import (
    AnsweredTask,
    Sample,
    ScoredTask,
    answered_samples,
    few_shot_prefix,
    read_documents,
    scored_samples,
)
from llama_jax.model.config import ComputeConfig
from llama_jax.runs.held_out import per_unit, perplexity

Document = TypeVar("Document")

_WITHOUT_INFLUENCE = ("json", "output", "distributed")
_IDENTIFIED = ("model", "step", "adapters", "tokenizer", "data", "fewshot_data")
_NOT_IN_KEYS = (*_WITHOUT_INFLUENCE, *_IDENTIFIED, "mesh", "batch_size")
"""Settings that a sample depends on by rounding alone, or through what has a fingerprint of its own."""


@dataclasses.dataclass(frozen=True)
class _Session:
    """What every task needs."""

    config: EvaluateConfig
    opened: OpenModel
    output: epath.Path | None
    stream: IO[str]
    """Where people are told what is going on, by `say` in whole lines."""
    say: Callable[[str], None]
    model_fingerprint: str

    @property
    def context_length(self) -> int:
        """Tokens in a row at the most."""
        context = self.opened.model.config.context_length
        length = self.config.sequence_length or context
        if length > context:
            raise UserError(f"--sequence_length {length}: exceeds the model's context of {context} tokens")
        return length

    def scorer(self) -> Scorer:
        """For likelihoods, on the mesh in use."""
        rows, length = self.config.batch_size, self.context_length
        return Scorer(self.opened.model, self.opened.params, rows=rows, context_length=length)

    def answerer(self) -> Answerer:
        """For answers, on the mesh in use."""
        opened, rows = self.opened, self.config.batch_size
        return Answerer(opened.model, opened.params, opened.tokenizer, rows=rows, context_length=self.context_length)


def evaluate(config: EvaluateConfig) -> None:
    """Run the command."""
    stream = sys.stderr if config.json else sys.stdout

    def say(text: str) -> None:
        if is_main_process():
            print(text, file=stream, flush=True)

    who = start_up(config.distributed)
    mesh = make_mesh(config.mesh)
    output = output_file(config.output)
    records = []
    if config.data is not None and config.task != "perplexity":
        records = read_records(config.data)  # a mistake in it is told before a model is opened
    judge = instructions.load_judge(config.judge) if config.judge is not None else None
    with jax.set_mesh(mesh):
        path = find_model(config.model, say, config.adapters)
        compute = ComputeConfig(dtype=config.model_dtype)
        opened = open_model(
            path, compute, mesh, step=config.step, tokenizer=config.tokenizer, say=say, adapters=config.adapters
        )
        say(who)
        started = time.perf_counter()
        session = _Session(config, opened, output, stream, say, _fingerprint(opened.params))
        if config.task == "perplexity":
            stride = config.stride
            result = _packed_perplexity(session) if stride is None else _sliding_perplexity(session, stride)
        elif config.task.startswith("lm_eval:"):
            result = _lm_eval(session)
        else:
            result = _records_task(session, records, judge)
        result["seconds"] = time.perf_counter() - started
    if is_main_process():
        _report(session, result)


def _report(session: _Session, result: dict[str, Any]) -> None:
    config, opened = session.config, session.opened
    settings = dataclasses.asdict(config)
    result = {
        "task": config.task,
        "model": opened.source,
        "data": config.data,
        **result,
        "config": {name: value for name, value in settings.items() if name not in _WITHOUT_INFLUENCE},
        "model_fingerprint": session.model_fingerprint,
        "tokenizer_fingerprint": opened.tokenizer.fingerprint,
    }
    session.say(f"{opened.source}, {config.task}: {_in_words(result)}")
    if session.output is not None:
        write_whole(session.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if config.json:
        print(json.dumps(result))


def _in_words(result: Mapping[str, Any]) -> str:
    """Metrics with their standard errors, and how much was measured in what time."""
    parts = [f"{result['documents']} documents in {result['seconds']:.1f} s"] if "documents" in result else []
    if result.get("truncated"):
        parts.append(f"{result['truncated']} of {result['requests']} requests truncated")
    if result.get("skipped"):
        parts.append(f"{result['skipped']} records skipped")
    for name, value in result.items():
        if isinstance(value, float) and not name.endswith("_stderr") and name != "seconds":
            error = result.get(f"{name}_stderr")
            parts.append(f"{name} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    for task, metrics in result.get("results", {}).items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float) and "stderr" not in name}
        parts += [f"{task} {name} {value:.4f}" for name, value in numbers.items()]
    return ", ".join(parts)


def _fingerprint(params: PyTree) -> str:
    """SHA-256 over the fingerprints of all parameters, in the type they are used in: the same on any mesh."""
    words = jax.device_get(tree.flatten(tree.fingerprints(params)))
    return hashlib.sha256(b"".join(path.encode() + words[path].tobytes() for path in sorted(words))).hexdigest()


def _documents(session: _Session) -> tuple[DataConfig, Documents]:
    """The documents whose perplexity is measured, and how they are cut into rows.

    Raises:
        UserError: no data is named and the model is no run.
    """
    config, run = session.config, session.opened.run
    trained: dict[str, Any] = load_config(run)["data"] if run is not None else {}
    length = session.context_length
    if config.sequence_length is None and config.stride is None:
        length = trained.get("sequence_length", length)
    if config.data is not None:
        data = DataConfig(source=config.data, text_field=config.text_field, sequence_length=length)
        documents = open_source(config.data, config.text_field)
    elif run is not None and "template" in trained:
        raise UserError(f"--data: needed, {run} was trained on instructions and held out no documents")
    elif run is not None:
        mixture = tuple(map(tuple, trained.get("mixture", ())))  # YAML has lists
        data = DataConfig(**trained | {"mixture": mixture, "sequence_length": length})
        documents = open_mixture(data).hold_out(data.validation_fraction)[1]
    else:
        raise UserError("--data: needed, only a run has held-out documents of its own")
    if config.limit is not None and config.limit < len(documents):
        documents = SelectedDocuments(documents, np.arange(config.limit), f"the first {config.limit}")
    return data, documents


def _packed_perplexity(session: _Session) -> dict[str, Any]:
    """Every document once, packed into rows as in training."""
    opened, mesh = session.opened, jax.sharding.get_mesh()
    data, documents = _documents(session)
    parts = sharding.batch_parts(mesh)
    rows = -(-session.config.batch_size // parts) * parts
    batches = validation_batches(documents, opened.tokenizer, data, rows)
    result = perplexity(opened.model, opened.params, batches, text_bytes(documents, opened.tokenizer))
    words = sum(len(text.split()) for text in texts_of(documents, opened.tokenizer))
    return _with_baselines(session, result, documents, words) | {"programs": 1}


def _sliding_perplexity(session: _Session, stride: int) -> dict[str, Any]:
    """Every document by itself, in windows that overlap."""
    data, documents = _documents(session)
    if stride > data.sequence_length:
        raise UserError(f"--stride {stride}: leaves tokens out, as a window has {data.sequence_length}")
    scorer, tokenizer = session.scorer(), session.opened.tokenizer
    measure = functools.partial(
        window_samples, tokenizer=tokenizer, scorer=scorer, length=data.sequence_length, stride=stride
    )
    samples = _samples(session, list(texts_of(documents, tokenizer)), documents.identity(), measure)
    totals = {name: sum(sample[name] for sample in samples) for name in samples[0]}
    result = per_unit(totals["nats"], totals["tokens"], totals["bytes"])
    counts = {"requests": totals["requests"], "programs": len(scorer.programs)}
    return _with_baselines(session, result, documents, totals["words"]) | counts


def _with_baselines(session: _Session, result: dict[str, Any], documents: Documents, words: int) -> dict[str, Any]:
    result["word_perplexity"] = word_perplexity(result, words)
    result["zlib_bits_per_byte"] = zlib_bits_per_byte(documents, session.opened.tokenizer)
    return {"documents": len(documents), **result}


def _lm_eval(session: _Session) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness."""
    try:
        from llama_jax.evals import harness  # an extra
    except ImportError as error:
        raise UserError(f"--task {session.config.task}: {error}; pip install 'llama_jax[eval]'") from None
    config, opened = session.config, session.opened
    lm = harness.LlamaJaxLM(
        opened.model, opened.params, opened.tokenizer, rows=config.batch_size, context_length=session.context_length
    )
    result = harness.harness_results(
        lm,
        config.task.removeprefix("lm_eval:").split(","),
        include_path=config.include_path,
        num_fewshot=config.num_fewshot or None,
        limit=config.limit,
    )
    return result | lm.counts | {"programs": lm.programs}


def _records_task(session: _Session, records: Sequence[Record], judge: instructions.Judge | None) -> dict[str, Any]:
    """A task whose documents are records."""
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
    samples = _samples(session, documents, content, measure)
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
    known, _ = read_documents(read_records(config.fewshot_data, "--fewshot_data"), task)
    if len(known) < count:
        raise UserError(f"--fewshot_data {config.fewshot_data}: has {len(known)} examples, not {count}")
    # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
    drawn = np.random.RandomState(config.seed).permutation(len(known))[:count]
    return [known[number] for number in drawn], documents


def _task(session: _Session, judge: instructions.Judge | None) -> ScoredTask | AnsweredTask:
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


def _samples(
    session: _Session,
    documents: Sequence[Document],
    content: str,
    measure: Callable[[Mapping[int, Document]], Iterator[tuple[int, Sample]]],
) -> list[Sample]:
    """A sample of each document, going on where the same evaluation was stopped.

    Args:
        content: tells other documents apart.
        measure: gives the samples of documents by number, in any order.
    """
    settings = dataclasses.asdict(session.config)
    for name in _NOT_IN_KEYS:
        del settings[name]
    facts = [settings, session.model_fingerprint, session.opened.tokenizer.fingerprint, content]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    kept = KeptSamples(session.output, key, session.say)
    left = {number: document for number, document in enumerate(documents) if number not in kept.by_document}
    with shown_progress(len(left), "documents", session.stream) as advance:
        for number, sample in measure(left):
            kept.add(number, sample)
            advance()
    kept.close()
    return [kept.by_document[number] for number in range(len(documents))]
