"""The task `perplexity`: how well a model predicts documents, packed into rows or each by itself, window by window."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.core.placing import padded_rows
from llama_jax.core.run_directory import load_config
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import (
    text_bytes,
    texts_of,
    usable_documents,
    validation_batches,
    zlib_bits_per_byte,
)
from llama_jax.data.rows.mixture import open_mixture
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import Documents
from llama_jax.data.sources.opening import errors_of, open_source
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.scoring import Request, Scorer, document_scores
from llama_jax.evals.session import Session, bad_records_of
from llama_jax.evals.tasks import Sample
from llama_jax.runs.held_out import bounded_exp, per_unit, perplexity


def evaluate(session: Session) -> dict[str, Any]:
    """Perplexity, bits per byte and the like of the documents that the settings name, and what zlib makes of them."""
    stride = session.config.stride
    return _packed(session) if stride is None else _sliding(session, stride)


class _Measured(NamedTuple):
    """What the perplexity is measured of."""

    data: DataConfig
    """How documents are cut into rows."""
    documents: Documents
    """Those that can be used."""
    bad: BadRecords
    """The others."""


def _measured(session: Session) -> _Measured:
    """The documents that the settings name, or that the run held out.

    Raises:
        UserError: no data is named and the model is not a run; or too many documents cannot be used.
    """
    config = session.config
    data, documents = _documents(session)
    if config.data is not None:
        bad = bad_records_of(config, config.data, session.say)
    else:
        # A share of so few tells nothing; the run has watched that of all.
        bad = BadRecords("the held-out documents", config.bad_records, 1.0, settings="--", say=session.say)
    return _Measured(data, usable_documents(documents, session.opened.tokenizer, bad, config.limit), bad)


def _documents(session: Session) -> tuple[DataConfig, Documents]:
    config, run = session.config, session.opened.run
    trained: dict[str, Any] = load_config(run)["data"] if run is not None else {}
    length = session.context_length
    if config.sequence_length is None and config.stride is None:
        length = trained.get("sequence_length", length)
    if config.data is not None:
        data = DataConfig(source=config.data, text_field=config.text_field, sequence_length=length)
        with errors_of("--data"):
            documents = open_source(config.data, config.text_field)
    elif run is not None and "template" in trained:
        raise UserError(f"--data: needed, {run} was trained on instructions and held out no documents")
    elif run is not None:
        mixture = tuple(map(tuple, trained.get("mixture", ())))  # YAML has lists
        data = DataConfig(**trained | {"mixture": mixture, "sequence_length": length})
        documents = open_mixture(data).hold_out(data.validation_fraction)[1]
    else:
        raise UserError("--data: needed, only a run has held-out documents of its own")
    return data, documents


def _packed(session: Session) -> dict[str, Any]:
    """Every document once, packed into rows as in training."""
    opened, rows = session.opened, padded_rows(session.config.batch_size)
    data, documents, bad = _measured(session)
    batches = validation_batches(documents, opened.tokenizer, data, rows)
    result = perplexity(opened.model, opened.params, batches, text_bytes(documents, opened.tokenizer))
    words = sum(len(text.split()) for text in texts_of(documents, opened.tokenizer))
    return _with_baselines(session, result, documents, words) | _left_out(bad) | {"programs": 1}


def _sliding(session: Session, stride: int) -> dict[str, Any]:
    """Every document by itself, in windows that overlap."""
    data, documents, bad = _measured(session)
    if stride > data.sequence_length:
        raise UserError(f"--stride {stride}: leaves tokens out, as a window has {data.sequence_length}")
    scorer, tokenizer = session.scorer(), session.opened.tokenizer
    measure = functools.partial(
        window_samples, tokenizer=tokenizer, scorer=scorer, length=data.sequence_length, stride=stride
    )
    samples = session.samples(list(texts_of(documents, tokenizer)), documents.identity(), measure)
    totals = {name: sum(sample[name] for sample in samples) for name in samples[0]}
    result = per_unit(totals["nats"], totals["tokens"], totals["bytes"])
    counts = {"requests": totals["requests"], "programs": len(scorer.programs)}
    return _with_baselines(session, result, documents, totals["words"]) | _left_out(bad) | counts


def _left_out(bad: BadRecords) -> dict[str, Any]:
    return {"dropped_records": dict(bad.reasons)}


def _with_baselines(session: Session, result: dict[str, Any], documents: Documents, words: int) -> dict[str, Any]:
    result["word_perplexity"] = word_perplexity(result, words)
    result["zlib_bits_per_byte"] = zlib_bits_per_byte(documents, session.opened.tokenizer)
    return {"documents": len(documents), **result}


def word_perplexity(result: Mapping[str, Any], words: int) -> float:
    """exp of the nats per word, for a result of `per_unit` on a text of so many words (parted by white space)."""
    return bounded_exp(result["loss"] * result["tokens"] / words)


def window_samples(
    documents: Mapping[int, str], tokenizer: Tokenizer, scorer: Scorer, *, length: int, stride: int
) -> Iterator[tuple[int, Sample]]:
    """(number of the document, its -log p in nats and its size), each by itself, cut by `windows`."""

    def requests(text: str) -> list[Request]:
        return list(windows(tokenizer.encode(text, bos=True, eos=True), length, stride))

    for number, scores in document_scores(documents, requests, scorer):
        text = documents[number]
        nats, tokens = -sum(score.logprob for score in scores), sum(score.tokens for score in scores)
        sizes = {"bytes": len(text.encode()), "words": len(text.split()), "requests": len(scores)}
        yield number, {"nats": nats, "tokens": tokens} | sizes


def windows(ids: Sequence[int], length: int, stride: int) -> Iterator[Request]:
    """A document as windows of `length` tokens that begin every `stride` tokens. Each scores what the one before has
    not: every token but the first is scored once, with at least `length - stride` tokens before it as soon as there are
    so many (as in Hugging Face's guide to perplexity, but for a window of `length` tokens that are read)."""
    tokens = np.array(ids, np.int32)
    scored = 1
    for first in range(0, len(tokens), stride):
        end = min(first + length + 1, len(tokens))
        if end > scored:
            yield Request(tokens[first:scored], tokens[scored:end])
            scored = end
