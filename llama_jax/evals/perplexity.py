"""The task `perplexity`: how well a model predicts documents, packed into rows or each by itself, window by window. And
the same of one document at a time, for those who choose documents by it."""

import functools
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llama_jax.checkpoints.opening import ModelReference, open_model
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
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
from llama_jax.evals.session import Session, bad_records_of, params_fingerprint
from llama_jax.evals.tasks import Sample
from llama_jax.model.config import ComputeConfig
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


class DocumentPerplexity:
    """exp of the nats per token of a text by a model, BOS given, EOS and all between scored, in windows of the model's
    context one after the other.

    Always computed on one device of the CPU in float32, and in batches of one row, so that a text has the same
    perplexity, to the bit, in every process of a machine and beside any other text. Travels by pickle as the name of
    the model, which each process opens on the first call.

    Args:
        model: as `--model` takes it.
        tokens: how many of a text are scored at the most, from its start.

    Raises:
        UserError: the model cannot be opened.
    """

    def __init__(self, model: str, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        self.identity = _open(model).identity

    def __call__(self, text: str) -> float:
        """The perplexity of a text, by token.

        Raises:
            UserError: the model is another by now.
        """
        opened = _open(self._model)
        if opened.identity != self.identity:
            raise UserError(f"--perplexity.model {self._model}: has changed since the work began; run it again")
        ids = opened.tokenizer.encode(text, bos=True, eos=True)[: self._tokens + 1]
        with jax.set_mesh(opened.mesh):
            requests = list(windows(ids, opened.length, opened.length))
            logprobs = [score.logprob for _, score in sorted(opened.scorer.scores(requests))]
        return bounded_exp(-math.fsum(logprobs) / (len(ids) - 1))


class _Opened(NamedTuple):
    """A model in this process."""

    tokenizer: Tokenizer
    scorer: Scorer
    length: int
    """Tokens of a window."""
    mesh: Mesh
    identity: str


@functools.cache
def _open(path: str) -> _Opened:
    if multiprocessing.parent_process() is not None:
        jax.config.update("jax_platforms", "cpu")  # many processes cannot share an accelerator, nor need it here
    mesh = make_mesh(MeshConfig(), jax.devices("cpu")[:1])
    with jax.set_mesh(mesh):
        try:
            opened = open_model(ModelReference(path), ComputeConfig(dtype="float32"), say=print)
        except UserError as error:
            message = str(error).removeprefix(f"--model {path}: ")
            raise UserError(f"--perplexity.model {path}: {message}") from None
        length = opened.model.config.context_length
        scorer = Scorer(opened.model, opened.params, rows=1, context_length=length)
        identity = f"{params_fingerprint(opened.params)}, tokenizer {opened.tokenizer.fingerprint}"
    return _Opened(opened.tokenizer, scorer, length, mesh, identity)
