"""How well a model predicts text: nats per token, and bits per byte, which compares models of different tokenizers."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.sharding import local_rows, place_batch
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.scoring import Request, Scorer
from llama_jax.evals.tasks import Sample, document_scores
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.next_token import next_token


@functools.partial(jax.jit, static_argnums=0)
def summed_loss(model: LanguageModel, params: PyTree, batch: TokenBatch) -> Float[Array, ""]:
    """Sum of -log p(target) over the weighted targets of a batch, in nats."""
    sums = batch.replace(normalizer=jnp.ones_like(batch.normalizer))
    return next_token(model)(params, {}, sums, None)[1]["loss"]


def perplexity(
    model: LanguageModel, params: PyTree, batches: Iterable[Mapping[str, np.ndarray]], text_bytes: int
) -> dict[str, Any]:
    """Score every target of the batches once.

    Args:
        params: scanned layout, on the mesh in use.
        batches: rows of each global batch, whole on every process, all of one size.
        text_bytes: UTF-8 bytes of the text that the targets cover.

    Returns:
        See `per_unit`.
    """
    mesh = jax.sharding.get_mesh()
    nats, tokens = 0.0, 0
    for rows in batches:
        size = len(rows["tokens"])
        mine = local_rows(mesh, size)
        batch = place_batch(mesh, {name: array[mine] for name, array in rows.items()}, size)
        nats += float(summed_loss(model, params, batch))
        tokens += int(rows["loss_weights"].sum())
    return per_unit(nats, tokens, text_bytes)


def per_unit(nats: float, tokens: int, text_bytes: int) -> dict[str, Any]:
    """The total -log p of a text by its units.

    Returns:
        `loss` (nats per token, the ends of documents included), `perplexity`, `bits_per_byte`, `tokens`, `bytes`.
    """
    return {
        "loss": nats / tokens,
        "perplexity": _exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
        "bytes": text_bytes,
    }


def word_perplexity(result: Mapping[str, Any], words: int) -> float:
    """exp of the nats per word, for a result of `per_unit` on a text of so many words (parted by white space)."""
    return _exp(result["loss"] * result["tokens"] / words)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


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
