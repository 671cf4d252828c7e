"""Documents that differ from an earlier one in nothing but white space, found by the hashes of all."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from llama_jax.data.preparation.cleaning import text_hash
from llama_jax.data.preparation.job import PROGRESS, Count, Job, Notes, Pass, Search
from llama_jax.data.preparation.partitions import parts_of, read_part, read_part_of_all, rows_in, write_partitioned

_DOCUMENTS_AT_ONCE = 2**22  # a quarter of a gigabyte, sorted
_NOTE = np.dtype([("low", "<u8"), ("high", "<u8"), ("document", "<i8")])
_PAIR = np.dtype([("document", "<i8"), ("of", "<i8")])


class ExactDuplicates(Search):
    """Drops every document that has the hash of an earlier one."""

    name = "duplicate"

    def notes(self, job: Job, shard: int) -> Notes:
        return _Hashes(job, shard)

    def passes(self, job: Job) -> Iterator[Pass]:
        parts = _parts(job)
        yield Pass("comparing", _compare, [1] * parts, functools.partial(_pairs_path, job.directory), "parts")

    def dropped(self, job: Job, shard: int) -> Mapping[int, Mapping[str, Any]]:
        found: dict[int, Mapping[str, Any]] = {}
        for part in range(_parts(job)):
            for document, first in read_part(_pairs_path(job.directory, part), shard, job.shards, _PAIR).tolist():
                found[document] = {"reason": self.name, "of": first}
        return found

    def summary(self, job: Job) -> str:
        count = sum(rows_in(_pairs_path(job.directory, part), job.shards) for part in range(_parts(job)))
        return f"{count:,} documents are the same as an earlier one"


def _parts(job: Job) -> int:
    """How many parts hashes are divided into, by their value, so that one is compared at a time."""
    return -(-len(job.documents) // _DOCUMENTS_AT_ONCE)


def _hashes_path(job: Job, shard: int) -> epath.Path:
    return job.progress / f"hashes-{shard:05}.bin"


def _pairs_path(directory: epath.Path, part: int) -> epath.Path:
    return directory / PROGRESS / f"duplicates-{part:05}.bin"


class _Hashes:
    """The hashes of a shard's documents."""

    def __init__(self, job: Job, shard: int) -> None:
        self._job, self._shard = job, shard
        self._hashes, self._documents = bytearray(), []

    def add(self, document: int, text: str) -> None:
        self._hashes += text_hash(text)
        self._documents.append(document)

    def write(self) -> None:
        rows = np.empty(len(self._documents), _NOTE)
        halves = np.frombuffer(self._hashes, "<u8").reshape(-1, 2)
        rows["low"], rows["high"], rows["document"] = halves[:, 0], halves[:, 1], self._documents
        parts = _parts(self._job)
        write_partitioned(_hashes_path(self._job, self._shard), rows, parts_of(rows["low"], parts), parts)


def _compare(job: Job, part: int, count: Count) -> None:
    """Write the pairs of a document and the first one with its hash, so that those of a shard are together."""
    paths = (_hashes_path(job, shard) for shard in range(job.shards))
    rows = read_part_of_all(paths, part, _parts(job), _NOTE, functools.partial(count, 0, 0, 0))
    rows = rows[np.lexsort((rows["document"], rows["high"], rows["low"]))]
    same = np.zeros(len(rows), bool)
    same[1:] = (rows["low"][1:] == rows["low"][:-1]) & (rows["high"][1:] == rows["high"][:-1])
    pairs = np.empty(int(same.sum()), _PAIR)
    pairs["document"] = rows["document"][same]
    pairs["of"] = rows["document"][~same][np.cumsum(~same)[same] - 1]
    pairs.sort(order="document")
    write_partitioned(_pairs_path(job.directory, part), pairs, job.shards_of(pairs["document"]), job.shards)
    count(1, 0, 0)
