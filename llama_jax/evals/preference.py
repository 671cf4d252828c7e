"""The task `preference`: how often a model prefers the better of two answers, and how often one does who looks at
nothing but their length. A reward model prefers what it scores higher, a language model what it finds more likely."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from llama_jax.checkpoints.reward_normalization import read_normalization
from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import CompletionBatch, completion_batch
from llama_jax.core.errors import UserError
from llama_jax.core.placing import padded_rows, place_whole_batch
from llama_jax.core.run_directory import load_config
from llama_jax.core.sharding import replicated
from llama_jax.data.config import PreferenceDataConfig
from llama_jax.data.preferences.examples import CompletionExamples
from llama_jax.data.preferences.loader import PreferenceLoader
from llama_jax.data.rows.streams import Rows
from llama_jax.data.sources.opening import errors_of
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.session import Session
from llama_jax.evals.tasks import Sample, means
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.completions import at_ends
from llama_jax.runs.completion_sums import completion_sums
from llama_jax.runs.score_report import PairReport


def evaluate(session: Session) -> dict[str, Any]:
    """Accuracies with their standard errors, that of length alone, and whether the difference is more than chance."""
    opened, (loader, examples, rows) = session.opened, _pairs(session)
    is_reward_model = opened.model.config.scalar_head
    of_batch = functools.partial(end_scores if is_reward_model else completion_sums, opened.model, opened.params)
    for line in loader.description():
        session.say(f"data: {line}")
    measure = functools.partial(pair_samples, rows, examples, opened.tokenizer, of_batch)
    count = min(len(examples), session.config.limit or len(examples))
    samples = session.samples(range(count), examples.digest(), measure)
    report = PairReport(*(np.array([sample[name] for sample in samples], np.float64) for name in ("scores", "tokens")))
    rule, by_length = report.length_rule
    right = {"accuracy": report.right, "length_accuracy": by_length}
    found: dict[str, Any] = {"preferred_length": rule}
    if is_reward_model:
        normalization = read_normalization(opened.files, opened.source)
        found["reward_normalization"] = None if normalization is None else dataclasses.asdict(normalization)
        found |= {name: report.record()[name] for name in ("reward_margin", "calibration_error")}
    else:
        right["accuracy_per_token"] = dataclasses.replace(report, scores=report.scores / report.lengths).right
    verdict = report.verdict()
    session.say(verdict.line())
    of_sources = loader.data.counts
    return {
        "documents": count,
        "pairs": len(examples),
        "cut_pairs": sum(counts.truncated for counts in of_sources),
        "dropped_records": dict(sum((counts.dropped for counts in of_sources), Counter())),
        **means([dict(zip(right, each, strict=True)) for each in zip(*right.values(), strict=True)], right),
        **found,
        "verdict": verdict.to_json(),
    }


def _pairs(session: Session) -> tuple[PreferenceLoader, CompletionExamples, Callable[[], Iterator[Rows]]]:
    """The pairs that the settings name, or that the run held out, and their batches in order."""
    config, rows, tokenizer = session.config, padded_rows(session.config.batch_size), session.opened.tokenizer
    seed = 0
    if config.data is not None:
        length = session.context_length
        data = PreferenceDataConfig(
            source=config.data,
            sequence_length=2 * length,
            overlong="keep_end",
            validation_fraction=0.0,
            bad_records=config.bad_records,
            max_bad_fraction=config.max_bad_fraction,
        )
    else:
        trained = _trained(session)
        seed, values = trained["seed"], trained["data"]
        tuples = {name: tuple(map(tuple, values[name])) for name in ("mixture",)} | {"split": tuple(values["split"])}
        data = PreferenceDataConfig(**values | tuples)
    with errors_of("--data"):
        loader = PreferenceLoader(data, tokenizer, "pairs", seed, batch_size_at=lambda row: rows, say=session.say)
    if config.data is not None:
        return loader, loader.training, functools.partial(loader.batches_in_order, rows)
    if not len(loader.validation):
        raise UserError("--data: needed, the run held out no pairs")
    return loader, loader.validation, functools.partial(loader.validation_batches, rows)


def _trained(session: Session) -> dict[str, Any]:
    """The settings of the run that learned from preferences, among those that are used.

    Raises:
        UserError: there is none.
    """
    for path in (*session.config.adapters, session.config.model):
        if path is not None and (epath.Path(path) / "config.yaml").exists():
            settings = load_config(path)
            if "pairs_per_row" in settings.get("data", {}):
                return settings
    raise UserError("--data: needed, only a run that learned from preferences has held-out pairs of its own")


def pair_samples(
    batches: Callable[[], Iterator[Rows]],
    examples: CompletionExamples,
    tokenizer: Tokenizer,
    of_batch: Callable[[list[Rows]], np.ndarray],
    numbers: Mapping[int, Any],
) -> Iterator[tuple[int, Sample]]:
    """(number of the pair, what the model says of it).

    Args:
        batches: of all examples in their order.
        of_batch: a score of each answer of a batch, [N, 2].
        numbers: keys are the pairs that are asked for.
    """
    first, last = 0, max(numbers, default=-1)
    for rows in batches():
        if first > last:
            return
        here = range(first, first := first + int((rows["example_weights"] > 0).sum()))
        wanted = [number for number in here if number in numbers]
        scores = of_batch([rows]) if wanted else np.zeros((len(here), 2))
        for number in wanted:
            yield number, _sample(examples, number, scores[number - here.start].tolist(), tokenizer)


def _sample(examples: CompletionExamples, number: int, scores: list[float], tokenizer: Tokenizer) -> Sample:
    sequences = examples[number]
    chosen, rejected = (tokenizer.decode(ids[of_answer].tolist()) for ids, of_answer in sequences)
    ids, of_answer = sequences[0]
    prompt = tokenizer.decode(ids[: int(np.argmax(of_answer))].tolist())
    tokens = examples.lengths[number].tolist()
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "scores": scores, "tokens": tokens}


def end_scores(model: LanguageModel, params: PyTree, batches: list[Rows]) -> np.ndarray:
    """What a reward model says at the end of each answer [N, 2]."""
    mesh, found = jax.sharding.get_mesh(), []
    for rows in batches:
        size, examples, members = rows["starts"].shape
        batch = place_whole_batch(mesh, completion_batch(examples, members), rows, size)
        scores = np.asarray(jax.device_put(_scores_at_ends(model, params, batch), replicated(mesh)))
        found.append(scores[rows["example_weights"] > 0])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def _scores_at_ends(model: LanguageModel, params: PyTree, batch: CompletionBatch) -> Float[Array, "B K M"]:
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    return at_ends(model.scores(params, hidden), batch)
