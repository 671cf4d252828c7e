"""The task `preference`: how often a model prefers the better of two answers, and how often one does who looks at
nothing but their length. A reward model prefers what it scores higher, a language model what it finds more likely."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from llama_jax.checkpoints.reward_normalization import read_normalization, read_padding
from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import CompletionBatch, completion_batch
from llama_jax.core.errors import UserError
from llama_jax.core.placing import padded_rows, place_whole_batch
from llama_jax.core.run_directory import load_config
from llama_jax.core.sharding import replicated
from llama_jax.data.config import PreferenceDataConfig
from llama_jax.data.preferences.examples import CompletionExamples
from llama_jax.data.preferences.loader import PreferenceLoader
from llama_jax.data.preferences.rows import ending_before
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
    opened, (loader, examples, kind, batches) = session.opened, _pairs(session)
    is_reward_model = opened.model.config.scalar_head
    if (padding := read_padding(opened.files, opened.source)) is not None:
        batches = _read_before(padding, batches)
    of_batch = functools.partial(end_scores if is_reward_model else completion_sums, opened.model, kind, opened.params)
    of_sources = loader.data.counts
    if cut := sum(counts.truncated for counts in of_sources):
        session.say(f"note: {cut} of {len(examples)} pairs did not fit and were cut (--sequence_length)")
    measure = functools.partial(pair_samples, batches, examples, opened.tokenizer, of_batch)
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
    verdict = dataclasses.replace(report.verdict(), name="accuracy")
    session.say(verdict.line())
    return {
        "documents": count,
        "pairs": len(examples),
        "cut_pairs": cut,
        "dropped_records": dict(sum((counts.dropped for counts in of_sources), Counter())),
        **means([dict(zip(right, each, strict=True)) for each in zip(*right.values(), strict=True)], right),
        **found,
        "verdict": verdict.to_json(),
    }


def _read_before(padding: int, batches: Callable[[], Iterator[Rows]]) -> Callable[[], Iterator[Rows]]:
    return lambda: (ending_before(rows, padding) for rows in batches())


class _Pairs(NamedTuple):
    """What is measured on."""

    loader: PreferenceLoader
    examples: CompletionExamples
    """Those of the loader that are measured."""
    kind: type[CompletionBatch]
    """Class of the batches."""
    batches: Callable[[], Iterator[Rows]]
    """All examples in their order."""


def _pairs(session: Session) -> _Pairs:
    """The pairs that the settings name, or that the run held out.

    Raises:
        UserError: no data is named and there is no run that held pairs out; or the data have none that can be used.
    """
    config, rows, length = session.config, padded_rows(session.config.batch_size), session.context_length

    def opened(data: PreferenceDataConfig, seed: int) -> PreferenceLoader:
        tokenizer = session.opened.tokenizer
        return PreferenceLoader(data, tokenizer, "pairs", seed, batch_size_at=lambda step: rows, say=session.say)

    if config.data is None:
        trained = _trained(session)
        with errors_of("--data: needed, the run held out no pairs that can be read"):
            loader = opened(_data_of(trained["data"]), trained["seed"])
        if not len(loader.validation):
            raise UserError("--data: needed, the run held out no pairs")
        kind = completion_batch(trained["data"]["pairs_per_row"], 2)
        return _Pairs(loader, loader.validation, kind, functools.partial(loader.validation_batches, rows))
    data = PreferenceDataConfig(
        source=config.data,
        sequence_length=2 * length,
        overlong="keep_end",
        validation_fraction=0.0,
        bad_records=config.bad_records,
        max_bad_fraction=config.max_bad_fraction,
    )
    with errors_of("--data"):
        loader = opened(data, 0)
    return _Pairs(loader, loader.training, completion_batch(1, 2), functools.partial(loader.batches_in_order, rows))


def _data_of(values: Mapping[str, Any]) -> PreferenceDataConfig:
    """The section of a run's configuration, in which tuples are lists."""
    tuples = {"mixture": tuple(map(tuple, values["mixture"])), "split": tuple(values["split"])}
    return PreferenceDataConfig(**{**values, **tuples})


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


def end_scores(
    model: LanguageModel, kind: type[CompletionBatch], params: PyTree, batches: Iterable[Rows]
) -> np.ndarray:
    """What a reward model says at the end of each answer [N, M]; arguments are those of `completion_sums`."""
    mesh, found = jax.sharding.get_mesh(), []
    for rows in batches:
        batch = place_whole_batch(mesh, kind, rows, len(rows["tokens"]))
        scores = np.asarray(jax.device_put(_scores_at_ends(model, params, batch), replicated(mesh)))
        found.append(scores[rows["example_weights"] > 0])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def _scores_at_ends(model: LanguageModel, params: PyTree, batch: CompletionBatch) -> Float[Array, "B K M"]:
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    return at_ends(model.scores(params, hidden), batch)
