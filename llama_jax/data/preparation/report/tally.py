"""What happened to documents, in counts and a few samples that are small however many documents there are.

Tallies merge in any order and grouping to the same bytes, so each process may fill its own. Knows no rule by name."""

import hashlib
import heapq
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from llama_jax.data.preparation.reading import Edit

SAMPLES = 6
"""Documents that are shown of what a rule drops, and of what is kept."""
_DIGITS = (1, 1.1, 1.2, 1.35, 1.5, 1.65, 1.8, 2, 2.25, 2.5, 2.75, 3, 3.3, 3.6, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 9)
MEASURE_BOUNDS = tuple(float(f"{digits}e{power}") for power in range(-4, 9) for digits in _DIGITS)
"""Where the bins of a distribution begin, 24 a decade, none wider than an eighth; what is smaller is counted from 0.
Numbers that are written down, not computed, so that no two machines differ in the last bit of one."""

_KEPT = "kept"
_COUNTED = ("steps", "sources", "measures")
_BEGINNING, _AROUND, _END = 480, 240, 160  # characters of an excerpt
_HASHED_CHARACTERS = 1000
_LONGEST_VALUE = 300  # characters
_BIN_NAMES = ("0", *(f"{bound:g}" for bound in MEASURE_BOUNDS))


class Place(NamedTuple):
    """Where a document is from."""

    document: int
    """Its number."""
    source: str
    """The part of the corpus to count it by; see `origins`."""
    step: int
    """How far it is: what is taken earlier is shown first."""


class Sample(NamedTuple):
    """A document that stands for others."""

    key: str
    """Hash of the content. The smallest are chosen, which is by chance, and yet the same whatever the order."""
    document: int
    source: str
    characters: int
    """Length of the whole text."""
    excerpt: str
    """Of the text, or of the lines that were taken out of it."""
    measured: dict[str, Any]
    """Why it was dropped, but for the name of the reason; or how many lines were taken out for which."""


class Tally:
    """Counts of what was read, edited, dropped and kept, by source and rule.

    Every document is `read` once, and then `dropped` or `kept` once, be it in a tally of another pass. Bytes are those
    of the text in UTF-8 at the time, so what was read is what was kept, dropped, and taken out by edits.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._samples: dict[tuple[str, str], list[Sample]] = {}

    def read(self, place: Place, text: str) -> None:
        """Count a document that came in; the text after cleaning, empty where the record cannot be used."""
        self._add(("sources", place.source, "read"), _size(text))

    def edited(self, place: Place, edit: Edit) -> None:
        """Count what an edit took out of a document, and perhaps take that as a sample."""
        self._counts["steps", str(place.step), "edited", edit.by] += 1
        where = ("sources", place.source, "edited", edit.by)
        self._add(where, _size(edit.before) - _size(edit.after))
        for name, count in edit.lines.items():
            self._counts[(*where, "lines", name)] += count
        self._sample(("edited", edit.by), place, edit.before, edit.lines, lambda: taken_out(edit.before, edit.after))

    def tagged(self, place: Place, text: str, tags: Mapping[str, str], *, is_dropped: bool) -> None:
        """Count a document by its tags, such as `{"language": "de"}`, and whether it is dropped for them."""
        for kind, value in tags.items():
            where = ("sources", place.source, "tags", kind, value)
            self._add(where, _size(text))
            self._counts[(*where, "dropped")] += is_dropped

    def measured(self, measures: Mapping[str, float]) -> None:
        """Count a document in the distribution of each measure, none of which is below 0."""
        for name, value in measures.items():
            self._counts["measures", name, _BIN_NAMES[bisect_right(MEASURE_BOUNDS, value)]] += 1

    def dropped(self, place: Place, text: str, why: Mapping[str, Any], *, read: str = "") -> None:
        """Count a document that is left out, and perhaps take it as a sample.

        Args:
            text: What was left of it.
            why: Its `reason`, and what was measured.
            read: What it was, which is shown where nothing was left.
        """
        reason = why["reason"]
        self._counts["steps", str(place.step), "dropped", reason] += 1
        self._add(("sources", place.source, "dropped", reason), _size(text))
        measured = {name: value for name, value in why.items() if name != "reason"}
        text = text or read
        self._sample(("dropped", reason), place, text, measured, lambda: excerpt(text, _place_of(measured, text)))

    def kept(self, place: Place, text: str) -> None:
        """Count a document that is kept, and perhaps take it as a sample."""
        self._add(("sources", place.source, _KEPT), _size(text))
        self._sample((_KEPT, "all"), place, text, {}, lambda: excerpt(text))

    def _add(self, where: tuple[str, ...], size: int) -> None:
        self._counts[(*where, "documents")] += 1
        self._counts[(*where, "bytes")] += size

    def _sample(
        self, name: tuple[str, str], place: Place, text: str, measured: Mapping[str, Any], shown: Callable[[], str]
    ) -> None:
        # A record that cannot be used has no text.
        content = f"{len(text)} {text[:_HASHED_CHARACTERS] or json.dumps(measured, sort_keys=True)}"
        key = hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        chosen = self._samples.setdefault(name, [])
        if len(chosen) == SAMPLES and (key, place.document) > chosen[-1][:2]:
            return
        clipped = {name: _clipped(value) for name, value in measured.items()}
        sample = Sample(key, place.document, place.source, len(text), shown(), clipped)
        self._samples[name] = _smallest([*chosen, sample])

    @classmethod
    def merged(cls, tallies: Iterable["Tally"]) -> "Tally":
        """All of them as one."""
        result = cls()
        for each in tallies:
            result._counts.update(each._counts)
            for name, samples in each._samples.items():
                result._samples[name] = _smallest([*result._samples.get(name, []), *samples])
        return result

    def to_json(self) -> dict[str, Any]:
        """The counts as nested objects, in the order of their names, and the `samples`: of what was `dropped`, by
        reason, of what was `edited`, by rule, and of what was `kept`."""
        values: dict[str, Any] = {name: {} for name in _COUNTED}
        for path, count in sorted(self._counts.items()):
            inner = values
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = count
        samples: dict[str, Any] = {"dropped": {}, "edited": {}, _KEPT: {}}
        for (kind, name), found in sorted(self._samples.items()):
            samples[kind][name] = [each._asdict() for each in found]
        return {**values, "samples": samples}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Tally":
        """What `to_json` gave."""
        tally = cls()
        tally._counts.update(dict(_leaves({name: values[name] for name in _COUNTED}, ())))
        for kind, by_name in values["samples"].items():
            for name, samples in by_name.items():
                tally._samples[kind, name] = [Sample(**each) for each in samples]
        return tally


def excerpt(text: str, at: int | None = None) -> str:
    """The beginning of a text, what is around a character of interest, and the end, unless all of it is short."""
    if len(text) <= _BEGINNING + _END:
        return text
    pieces = [text[:_BEGINNING], text[-_END:]]
    if at is not None and _BEGINNING <= at < len(text) - _END:
        pieces.insert(1, text[max(_BEGINNING, at - _AROUND // 2) : at + _AROUND // 2])
    return "\n[…]\n".join(pieces)


def taken_out(before: str, after: str) -> str:
    """The beginning of what is no longer there, line by line."""
    left, gone, size = Counter(after.split("\n")), [], 0
    for line in before.split("\n"):
        if left[line]:
            left[line] -= 1
        elif line.strip() and size <= _BEGINNING:
            gone.append(line)
            size += len(line)
    return excerpt("\n".join(gone))


def _place_of(measured: Mapping[str, Any], text: str) -> int | None:
    """Where the words are for which a document is dropped, if it is for words."""
    words = next((value for value in map(measured.get, ("ngram", "value")) if isinstance(value, str)), "").split()
    found = re.search(r"[\W_]+".join(map(re.escape, words)), text, re.IGNORECASE) if words else None
    return found and found.start()


def _smallest(samples: Iterable[Sample]) -> list[Sample]:
    """Of each content the first document, and of these the few with the smallest hash."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.key not in first or sample.document < first[sample.key].document:
            first[sample.key] = sample
    return heapq.nsmallest(SAMPLES, first.values())


def _leaves(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], int]]:
    for name, value in values.items():
        if isinstance(value, int):
            yield (*path, name), value
        else:
            yield from _leaves(value, (*path, name))


def _clipped(value: Any) -> Any:
    return f"{value[:_LONGEST_VALUE]}…" if isinstance(value, str) and len(value) > _LONGEST_VALUE else value


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
