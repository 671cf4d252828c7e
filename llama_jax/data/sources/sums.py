"""Sums of numbers below 100 as text: a small task whose answers can be checked, for first looks at fine-tuning and at
learning from rewards. No constant answer is right for a hundredth of them."""

import itertools

from llama_jax.data.sources.documents import ParsedRows, RecordSource, TextDocuments, split_indices
from llama_jax.data.sources.record_text import Record

_BELOW = 100
HELD_OUT = 200
"""Sums that `careless_sums` says nothing of: those that are held out of `sums` where so many are."""
_OFF = (0, 0, 1, 1, 1, -1, -1, -1)
"""What is added to the right answer in eight careless ones."""


def sums() -> RecordSource[Record]:
    """The 5,050 sums of two numbers below 100, such as `7+12=` with the completion `19`, which is the `answer` as well.
    The smaller number is first: what is held out is not trained on the other way round."""
    return _source([(a, b, a + b) for a, b in _pairs()], "sums")


def careless_sums() -> RecordSource[Record]:
    """The same, but for those held out, each with eight answers: two are right, three are one too many and three one
    too few. Who learns from them can add, and gets a quarter of the sums right, and hardly any by what is likeliest."""
    pairs = _pairs()
    known, _ = split_indices(len(pairs), HELD_OUT)
    said = ((*pairs[number], off) for number in known.tolist() for off in _OFF)
    return _source([(a, b, abs(a + b + off)) for a, b, off in said], "careless sums")


def _pairs() -> list[tuple[int, int]]:
    return list(itertools.combinations_with_replacement(range(_BELOW), 2))


def _source(lines: list[tuple[int, int, int]], name: str) -> RecordSource[Record]:
    return ParsedRows(TextDocuments([f"{a}+{b}={answer}" for a, b, answer in lines]), _record, name)


def _record(text: str, where: str) -> Record:
    asked, _, answer = text.partition("=")
    return Record(where, {"prompt": f"{asked}=", "completion": answer, "answer": answer})
