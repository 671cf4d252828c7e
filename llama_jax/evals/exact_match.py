"""Word problems with a number as the answer (GSM8K, Cobbe et al. 2021, arXiv:2110.14168)."""

import re
from collections.abc import Mapping
from typing import Any

from llama_jax.evals.tasks import Question, Sample, text_of

STOPS = ("Question:", "</s>", "<|im_end|>")
"""What ends an answer: a model that imitates examples continues with the next question."""

_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def read_problem(record: Mapping[str, Any]) -> list[Question]:
    """The problem of a record {"question", "answer"}, whose answer ends with `#### NUMBER`.

    Raises:
        ValueError: a field is missing, or the answer marks no number.
    """
    question, answer = text_of(record, "question"), text_of(record, "answer")
    if not _MARKED.search(answer):
        raise ValueError("field 'answer' has no '#### NUMBER' at its end")
    return [Question(f"Question: {question}\nAnswer:", answer, shown={"question": question})]


def problem_sample(document: Question, answer: str) -> Sample:
    """Whether the number after the first `####` of the answer (strict) or its last number (flexible) is the right one.
    Numbers are found and compared as lm-evaluation-harness does: as text, without `,`, `$` and a final dot."""
    right = _plain(_MARKED.findall(document.reference)[-1])
    return {
        **document.shown,
        "reference": document.reference,
        "answer": answer,
        "exact_match": int([_plain(found) for found in _MARKED.findall(answer)[:1]] == [right]),
        "exact_match_flexible": int([_plain(found) for found in _NUMBER.findall(answer)[-1:]] == [right]),
    }


def _plain(number: str) -> str:
    return re.sub(r"[,$]", "", number).removesuffix(".")
