"""Sums of numbers below 100 as text: a small task whose answers can be checked, for first looks at fine-tuning and at
learning from rewards. No constant answer is right for a hundredth of them."""

import itertools

from llama_jax.data.sources.documents import ParsedRows, RecordSource, TextDocuments
from llama_jax.data.sources.record_text import Record

_BELOW = 100


def sums() -> RecordSource[Record]:
    """The 5,050 sums of two numbers below 100, such as `7+12=` with the completion `19`, which is the `answer` as well.
    The smaller number is first: what is held out is not trained on the other way round."""
    pairs = itertools.combinations_with_replacement(range(_BELOW), 2)
    return ParsedRows(TextDocuments([f"{a}+{b}={a + b}" for a, b in pairs]), _record, "sums")


def _record(text: str, where: str) -> Record:
    asked, _, answer = text.partition("=")
    return Record(where, {"prompt": f"{asked}=", "completion": answer, "answer": answer})
