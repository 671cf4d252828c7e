"""Multiple choice: which of the given answers the model finds most likely."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.evals.scoring import Score
from llama_jax.evals.tasks import Choices, Sample, text_of

ACCURACIES = ("accuracy", "accuracy_per_character", "accuracy_per_byte")


def read_choices(record: Mapping[str, Any]) -> list[Choices]:
    """The document of a record in one of the usual forms, with the prompt of lm-evaluation-harness's ARC task:

    - ARC as published: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"};
    - ARC on the Hugging Face hub: {"question", "choices": {"text", "label"}, "answerKey"};
    - MMLU: {"question", "choices": [text], "answer": number from 0, or letter};
    - HellaSwag: {"ctx", "endings", "label"}, with the harness's cleaning where it has "activity_label";
    - {"query", "choices", "gold"}, a query being the whole prompt; `answer` and `label` are read like `gold`.

    Returns:
        Nothing for a record without an answer, as hidden test sets have them.

    Raises:
        ValueError: the record has none of these forms.
    """
    if "endings" in record:
        endings = map(_cleaned, _texts(record["endings"], "endings"))
        return _document(_hella_swag_prompt(record), list(endings), None, record)
    question, choices = record.get("question"), record.get("choices")
    labels: Sequence[Any] | None = None
    if isinstance(question, dict):
        prompt, choices = f"Question: {text_of(question, 'stem')}\nAnswer:", question.get("choices")
    elif "query" in record:
        prompt = text_of(record, "query")
    else:
        prompt = f"Question: {text_of(record, 'question')}\nAnswer:"
    if isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices):
        choices = {name: [choice.get(name) for choice in choices] for name in ("text", "label")}
    if isinstance(choices, dict):
        choices, labels = choices.get("text"), choices.get("label")
    return _document(prompt, _texts(choices, "choices"), labels, record)


def _document(
    prompt: str, texts: Sequence[str], labels: Sequence[Any] | None, record: Mapping[str, Any]
) -> list[Choices]:
    name = next((name for name in ("answerKey", "gold", "answer", "label") if name in record), None)
    if name is None:
        raise ValueError("no field 'answerKey', 'gold', 'answer' or 'label' says which choice is right")
    answer = record[name]
    if answer in (None, "", -1, "-1"):
        return []
    known = [str(label) for label in labels or ()]
    if str(answer) in known:
        gold = known.index(str(answer))
    elif not known and re.fullmatch(r"\d{1,4}", str(answer)):
        gold = int(answer)
    elif not known and isinstance(answer, str) and len(answer) == 1:
        gold = string.ascii_uppercase.find(answer.upper())
    else:
        gold = -1
    if not 0 <= gold < len(texts):
        names = ", ".join(known) or f"0 to {len(texts) - 1}, or A to {string.ascii_uppercase[len(texts) - 1]}"
        raise ValueError(f"field '{name}' is {answer!r}, which names none of the {len(texts)} choices ({names})")
    return [Choices(prompt, tuple(f" {text}" for text in texts), gold)]


def _texts(choices: Any, name: str) -> list[str]:
    are_texts = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
    if not (are_texts and 2 <= len(choices) <= 26):
        raise ValueError(f"field '{name}' must be a list of 2 to 26 texts that are not empty")
    return choices


def _hella_swag_prompt(record: Mapping[str, Any]) -> str:
    if not {"activity_label", "ctx_a", "ctx_b"} <= record.keys():
        return text_of(record, "ctx")
    begun = text_of(record, "ctx_b")
    return _cleaned(f"{text_of(record, 'activity_label')}: {text_of(record, 'ctx_a')} {begun.capitalize()}")


def _cleaned(text: str) -> str:
    """Without the marks that WikiHow left in HellaSwag; as the harness does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def choices_sample(document: Choices, scores: Sequence[Score]) -> Sample:
    """Whether the model prefers the right choice: by log-probability, by log-probability for each character of a choice
    and for each byte of it in UTF-8 (lm-evaluation-harness's `acc`, `acc_norm` and `acc_bytes`). The space before a
    choice is not counted; the first of equals is preferred."""
    logprobs = [score.logprob for score in scores]
    choices = [choice[1:] for choice in document.choices]
    sizes = {
        "accuracy": [1] * len(choices),
        "accuracy_per_character": [len(choice) for choice in choices],
        "accuracy_per_byte": [len(choice.encode()) for choice in choices],
    }
    return {
        "prompt": document.prompt,
        "choices": choices,
        "logprobs": logprobs,
        "gold": document.gold,
        **{name: int(_preferred(logprobs, each) == document.gold) for name, each in sizes.items()},
    }


def _preferred(logprobs: Sequence[float], sizes: Sequence[int]) -> int:
    values = [logprob / size for logprob, size in zip(logprobs, sizes, strict=True)]
    return values.index(max(values))
