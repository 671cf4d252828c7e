"""Documents that hold a part of an evaluation: the same words in a row (GPT-3, arXiv:2005.14165, appendix C)."""

import functools
import itertools
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.arrays import Int, Integer
from llama_jax.core.errors import UserError, nearest
from llama_jax.data.preparation.rules.rule import KEPT, Judgement, Rule
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.opening import read_records
from llama_jax.data.sources.record_text import Record

FEWEST_WORDS = 8
"""A text of fewer is not looked for: GPT-3 takes this as the least n, for what is shared by chance below it."""
_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio, as in Fibonacci hashing


class Contamination(Rule):
    """Finds, and drops if asked, documents with an n-gram of an evaluation.

    Args:
        files: sources of records.
        fields: names of fields that are looked for; none: all.
        ngram: words of an n-gram.
        drop: whether such documents are dropped.
    """

    name = "contamination"

    def __init__(self, files: Sequence[str], fields: Sequence[str], ngram: int, *, drop: bool) -> None:
        self._evaluations = tuple(files), tuple(fields), ngram
        self._drop = drop

    def judged(self, text: str) -> Judgement:
        found = [overlap._asdict() for overlap in evaluations(*self._evaluations).overlaps(text)]
        if not found:
            return KEPT
        return Judgement({"reason": "contamination", **found[0]} if self._drop else None, found=found)


class Overlap(NamedTuple):
    """What a document shares with a record."""

    file: str
    """The source, as it was named."""
    record: str
    """Its place in the source."""
    ngram: str
    """The first words in the document that both have."""


class _Ngrams(NamedTuple):
    """All n-grams of one length; 16 bytes each."""

    hashes: Integer[np.ndarray, "ngrams"]
    """Ascending, of type uint64."""
    starts: Int[np.ndarray, "ngrams"]
    """Where each begins among the words of all texts."""


class Evaluations:
    """The n-grams of evaluations, by hash, and the words to confirm them with.

    Args:
        records: (source, place in it, texts that are looked for) of each.
        ngram: words of an n-gram; a text of fewer is one itself.
    """

    def __init__(self, records: Iterable[tuple[str, str, Sequence[str]]], ngram: int) -> None:
        self._places: list[tuple[str, str]] = []
        self.counts: dict[str, tuple[int, int]] = {}
        """Of each source, how many records it has, and how many of those have no text of enough words."""
        self._numbers: dict[str, int] = {}
        ids, owners = array("i"), array("i")
        starts: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        for source, place, texts in records:
            long_enough = [words for text in texts if len(words := words_of(text)) >= min(FEWEST_WORDS, ngram)]
            for words in long_enough:
                length = min(len(words), ngram)
                starts[length].append(np.arange(len(words) - length + 1) + len(ids))
                ids.extend(self._numbers.setdefault(word, len(self._numbers)) for word in words)
                owners.extend(itertools.repeat(len(self._places), len(words)))
            self._places.append((source, place))
            total, too_short = self.counts.get(source, (0, 0))
            self.counts[source] = total + 1, too_short + (not long_enough)
        self._ids, self._owners = np.array(ids, np.int32), np.array(owners, np.int32)
        self._tables = {length: self._table(length, np.concatenate(parts)) for length, parts in sorted(starts.items())}

    def _table(self, length: int, starts: Int[np.ndarray, "ngrams"]) -> _Ngrams:
        hashes = _hashes(self._ids, length)[starts]
        order = np.argsort(hashes, kind="stable")
        return _Ngrams(hashes[order], starts[order])

    def overlaps(self, text: str) -> Iterator[Overlap]:
        """Each record that the text shares an n-gram with, once."""
        words = words_of(text)
        ids = np.fromiter((self._numbers.get(word, -1) for word in words), np.int32, len(words))
        known: set[int] = set()
        for length, table in self._tables.items():
            for start, record in self._matches(ids, length, table):
                if record not in known:
                    known.add(record)
                    yield Overlap(*self._places[record], " ".join(words[start : start + length]))

    def _matches(self, ids: Int[np.ndarray, "words"], length: int, table: _Ngrams) -> Iterator[tuple[int, int]]:
        """(first word in the document, record) of what is the same, word by word and not by hash alone."""
        if len(ids) < length:
            return
        unknown = np.concatenate([[0], np.cumsum(ids < 0)])
        candidates = np.flatnonzero(unknown[length:] == unknown[:-length])
        hashes = _hashes(ids, length)[candidates]
        left, right = (np.searchsorted(table.hashes, hashes, side) for side in ("left", "right"))
        confirmed: set[int] = set()
        for place in np.flatnonzero(left < right):
            if left[place] in confirmed:
                continue  # again in this document, which may say it a thousand times
            start = int(candidates[place])
            others = table.starts[left[place] : right[place]]
            is_same = (self._ids[others[:, None] + np.arange(length)] == ids[start : start + length]).all(axis=1)
            if is_same.any():
                confirmed.add(int(left[place]))
            yield from ((start, int(record)) for record in np.unique(self._owners[others[is_same]]))


def words_of(text: str) -> list[str]:
    """The words of a text in small letters: runs of letters and digits, whatever is between them."""
    return _WORD.findall(text.lower())


def _hashes(ids: Int[np.ndarray, "words"], length: int) -> Integer[np.ndarray, "ngrams"]:
    """A hash of each run of so many words, as uint64."""
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    count = len(ids) - length + 1
    total = np.zeros(count, np.uint64)
    for place in range(length):
        total = (total + mixed[place : place + count]) * _MULTIPLIER
        total ^= total >> np.uint64(32)
    return total


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, in order, however deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            waiting.extend(reversed(list(each.values())))
        elif isinstance(each, list | tuple):
            waiting.extend(reversed(each))


def _wanted(record: Record, fields: Sequence[str]) -> list[str]:
    return list(_texts({name: record.values.get(name) for name in fields} if fields else record.values))


@functools.cache
def evaluations(sources: tuple[str, ...], fields: tuple[str, ...], ngram: int) -> Evaluations:
    """What is looked for of the records of all sources; read once in a process.

    Raises:
        UserError: a source cannot be read, has a record that cannot be used, or no record with one of the fields.
    """

    def records() -> Iterator[tuple[str, str, Sequence[str]]]:
        for source in sources:
            bad = BadRecords(source, "skip", 0.0, settings=None)
            found = read_records(source, bad, "--contamination.files")
            names = {name for record in found for name in record.values}
            if missing := [name for name in fields if name not in names]:
                raise UserError(
                    f"--contamination.fields {missing[0]}: no record of {source} has it{nearest(missing[0], names)}; "
                    f"there are {', '.join(sorted(names)[:8])}"
                )
            yield from ((source, record.place, _wanted(record, fields)) for record in found)

    return Evaluations(records(), ngram)


def contamination_report(
    found: Iterable[Mapping[str, Any]], sources: tuple[str, ...], fields: tuple[str, ...], ngram: int
) -> dict[str, dict[str, int]]:
    """For each source how many of its records the documents hold a part of.

    Args:
        found: all findings of the rule, with their `document`, in the order of those.

    Returns:
        By source `records`, `touched` of those, `too_short`: records without a text of enough words to be found, and
        `documents` that touch one.
    """
    records: defaultdict[str, set[str]] = defaultdict(set)
    documents: Counter[str] = Counter()
    last: dict[str, int] = {}
    for each in found:
        source, document = each["file"], each["document"]
        records[source].add(each["record"])
        documents[source] += last.get(source) != document
        last[source] = document
    return {
        source: {
            "records": total,
            "touched": len(records[source]),
            "too_short": too_short,
            "documents": documents[source],
        }
        for source, (total, too_short) in evaluations(sources, fields, ngram).counts.items()
    }
