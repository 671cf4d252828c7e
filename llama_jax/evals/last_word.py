"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage, which takes the whole of it to guess."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.evals.scoring import Score
from llama_jax.evals.tasks import Choices, Sample, means, text_of
from llama_jax.runs.held_out import bounded_exp


def read_passage(record: Mapping[str, Any], text_field: str) -> list[Choices]:
    """The passage in a field of the record; nothing if it is a single word.

    Raises:
        ValueError: the record has no such text.
    """
    parts = re.fullmatch(r"(.*\S)(\s+\S+)\s*", text_of(record, text_field), re.DOTALL)
    return [Choices(parts[1], (parts[2],), 0)] if parts else []


def passage_sample(document: Choices, scores: Sequence[Score]) -> Sample:
    """Whether greedy decoding finds all tokens of the word, and their log-probability in nats."""
    word = document.choices[0].strip()
    return {"prompt": document.prompt, "word": word, "logprob": scores[0].logprob, "accuracy": int(scores[0].greedy)}


def passage_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """`accuracy`, and `perplexity` of the word: exp of the mean of -log p over passages, as the harness has it. Its
    standard error is that of the mean times the perplexity (first order)."""
    found = means(samples, ("accuracy", "logprob"))
    perplexity = bounded_exp(-found["logprob"])
    return {
        "accuracy": found["accuracy"],
        "accuracy_stderr": found["accuracy_stderr"],
        "perplexity": perplexity,
        "perplexity_stderr": perplexity * found["logprob_stderr"],
    }
