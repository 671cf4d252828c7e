"""Sums below 20 as text: a small task whose answers can be checked, for first looks at fine-tuning and at learning from
rewards. No constant answer is right for a tenth of them."""

import itertools

from llama_jax.data.sources.documents import ParsedRows, RecordSource, TextDocuments
from llama_jax.data.sources.record_text import Record

_BELOW = 20


def sums() -> RecordSource[Record]:
    """All 210 sums of two numbers from 0 on, such as `7+12=` with the completion `19`, which is the `answer` as
    well."""
    pairs = [(a, b) for a, b in itertools.product(range(_BELOW), repeat=2) if a + b < _BELOW]
    return ParsedRows(TextDocuments([f"{a}+{b}={a + b}" for a, b in pairs]), _record, "sums")


def _record(text: str, where: str) -> Record:
    asked, _, answer = text.partition("=")
    return Record(where, {"prompt": f"{asked}=", "completion": answer, "answer": answer})
