"""How well a model predicts documents, each by itself, longer ones window by window."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.scoring import Request, Scorer
from llama_jax.evals.tasks import Sample, document_scores
from llama_jax.runs.held_out import bounded_exp


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
