"""Reward functions that come with llama_jax, for answers that can be checked. They run where a user's run, and import
nothing of ours."""

import re
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(str(turn["content"]) for turn in completion)


def exact(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the completion is the record's `answer`, but for space around it."""
    return [float(_text(text).strip() == str(wanted).strip()) for text, wanted in zip(completions, answer, strict=True)]


def last_number(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the last number of the completion is the last one of the record's `answer`, as in GSM8K."""
    return [float(_last(_text(text)) == _last(str(wanted))) for text, wanted in zip(completions, answer, strict=True)]


def phrases(completions: list[Any], wanted: list[Any], unwanted: list[Any], **_: Any) -> list[float]:
    """How many of the record's phrases `wanted` are in the completion, less how many of those `unwanted`."""
    return [
        float(sum(phrase in text for phrase in good) - sum(phrase in text for phrase in bad))
        for text, good, bad in zip(map(_text, completions), wanted, unwanted, strict=True)
    ]


def _last(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
