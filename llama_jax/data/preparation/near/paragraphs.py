"""Paragraphs that repeat earlier ones, as in CCNet (Wenzek et al. 2019, arXiv:1911.00359): a paragraph is
a line, and of those that are alike the first stays."""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from etils import epath

from llama_jax.core.arrays import Integer
from llama_jax.core.files import write_whole
from llama_jax.data.preparation.job import PROGRESS, Count, Job, Notes, Pass, Search, dropped_before
from llama_jax.data.preparation.near.words import alphabet, looked_up, mixed
from llama_jax.data.preparation.partitions import parts_of, read_part, read_part_of_all, rows_in, write_partitioned

_MOST_PARTS = 2**10
_REMOVED = 1
_LINE = np.dtype([("hash", "<u8"), ("document", "<i8"), ("line", "<i4")])
_PLACE = np.dtype([("document", "<i8"), ("line", "<i4")])


@dataclass(frozen=True)
class RepeatedParagraphs(Search):
    """Takes out of documents each line that is like an earlier one."""

    across_shards: bool
    """Look for it in the whole source; otherwise in the same shard."""

    name = "repeated_paragraphs"

    def parts(self, job: Job) -> int:
        """How many parts the hashes are divided into, one of which is looked at at a time: each about as large as what
        there is of a shard."""
        return min(job.shards, _MOST_PARTS)

    def notes(self, job: Job, shard: int) -> Notes:
        return _Lines(job, shard)

    def passes(self, job: Job) -> Iterator[Pass]:
        lines, repeated = (functools.partial(_path, job.directory, name) for name in ("lines-of-kept", "repeated"))
        yield Pass("sorting paragraphs", _sort, [1] * job.shards, lines, "shards")
        yield Pass("comparing paragraphs", _compare, [1] * self.parts(job), repeated, "parts")

    def edits(self, job: Job, shard: int) -> Callable[[int, str], tuple[str, Mapping[str, int]]]:
        repeated: dict[int, set[int]] = defaultdict(set)
        for part in range(self.parts(job)):
            for document, line in read_part(_path(job.directory, "repeated", part), shard, job.shards, _PLACE).tolist():
                repeated[document].add(line)

        def edited(document: int, text: str) -> tuple[str, Mapping[str, int]]:
            lines = repeated.get(document, ())
            if not lines:
                return text, {}
            left = (line for number, line in enumerate(text.split("\n")) if number not in lines)
            return "\n".join(left), {self.name: len(lines)}

        return edited

    def summary(self, job: Job) -> str:
        count = sum(rows_in(_path(job.directory, "repeated", part), job.shards) for part in range(self.parts(job)))
        return f"{count:,} paragraphs are like an earlier one"


@functools.cache
def _line_letters() -> Integer[np.ndarray, "codes"]:
    """For each Unicode number that of the character it is compared as, or that it is removed."""
    letters, categories = alphabet()
    table = letters.copy()
    table[np.isin(categories, (b"M", b"P", b"C"))] = _REMOVED
    table[[code for code in np.flatnonzero(categories == b"N").tolist() if chr(code).isdecimal()]] = ord("0")
    table[[code for code in range(0x3001) if chr(code).isspace()]] = ord(" ")
    table[ord("\n")] = ord("\n")
    return table


def paragraph_hashes(text: str) -> Integer[np.ndarray, "lines"]:
    """The first 64 bits of a hash (BLAKE2b) of each line, 0 for one in which nothing is left to compare.

    Compared is a line in lower case, without accents, punctuation and control characters, with 0 for each digit and one
    space for all white space between words.
    """
    letters = looked_up(_line_letters(), text)
    plain = letters[letters != _REMOVED].tobytes().decode("utf-32-le")
    hashes = bytearray()
    for line in plain.split("\n"):
        hashes += _hash(" ".join(line.split()))
    return np.frombuffer(hashes, "<u8")


def _hash(line: str) -> bytes:
    return hashlib.blake2b(line.encode(), digest_size=8).digest() if line else bytes(8)


def _search(job: Job) -> RepeatedParagraphs:
    return next(search for search in job.searches if isinstance(search, RepeatedParagraphs))


def _path(directory: epath.Path, name: str, number: int) -> epath.Path:
    return directory / PROGRESS / f"{name}-{number:05}.bin"


class _Lines:
    """The hashes of all lines of a shard."""

    def __init__(self, job: Job, shard: int) -> None:
        self._job, self._shard = job, shard
        self._rows = [np.zeros(0, _LINE)]

    def add(self, document: int, text: str) -> None:
        hashes = paragraph_hashes(text)
        rows = np.empty(len(hashes), _LINE)
        rows["hash"], rows["document"], rows["line"] = hashes, document, np.arange(len(hashes))
        self._rows.append(rows[hashes != 0])

    def write(self) -> None:
        write_whole(_path(self._job.directory, "lines", self._shard), np.concatenate(self._rows).tobytes())


def _sort(job: Job, shard: int, count: Count) -> None:
    """Write, for the parts, the lines of the documents that no other search drops."""
    search = _search(job)
    rows = np.frombuffer(_path(job.directory, "lines", shard).read_bytes(), _LINE)
    dropped = np.fromiter(dropped_before(job, search, shard), np.int64)
    rows = rows[~np.isin(rows["document"], dropped)]
    if not search.across_shards:
        rows["hash"] ^= mixed(np.array([shard]))  # lines of different shards are not alike
    parts = search.parts(job)
    write_partitioned(_path(job.directory, "lines-of-kept", shard), rows, parts_of(rows["hash"], parts), parts)
    count(1, 0, 0)


def _compare(job: Job, part: int, count: Count) -> None:
    """Write, for the shards, the places of all lines of a part that have the hash of an earlier one."""
    paths = (_path(job.directory, "lines-of-kept", shard) for shard in range(job.shards))
    rows = read_part_of_all(paths, part, _search(job).parts(job), _LINE, functools.partial(count, 0, 0, 0))
    rows = rows[np.lexsort((rows["line"], rows["document"], rows["hash"]))]
    again = np.flatnonzero(rows["hash"][1:] == rows["hash"][:-1]) + 1
    places = np.empty(len(again), _PLACE)
    places["document"], places["line"] = rows["document"][again], rows["line"][again]
    path = _path(job.directory, "repeated", part)
    write_partitioned(path, places, job.shards_of(places["document"]), job.shards)
    count(1, 0, 0)
