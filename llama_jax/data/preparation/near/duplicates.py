"""Near-duplicates of a corpus: signatures of the documents of a shard; by parts of the keys of bands, which documents
are similar; and the groups that this makes of all, of each of which one document stays."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from llama_jax.core.arrays import Integer, UInt32
from llama_jax.core.files import is_remote, write_whole
from llama_jax.data.preparation.job import PROGRESS, Count, Job, Notes, Pass, Search, dropped_before
from llama_jax.data.preparation.near.forest import Forest, zeros
from llama_jax.data.preparation.near.minhash import MinHash, signature_keys
from llama_jax.data.preparation.near.pairs import BANDED, Compared, buckets_of, similar_pairs
from llama_jax.data.preparation.partitions import parts_of, read_part, read_part_of_all, write_partitioned

_FEW_BANDS, _MANY_BANDS, _PARTS = 2**18, 2**22, 2**6
"""Bands that are compared at once, at about a hundred bytes each: what makes 64 parts, within bounds. Each part reads a
file of every shard, so parts of a large corpus are large."""
_SIGNED_CHARACTERS = 2**16  # at once, about 3 megabytes of temporary arrays
_LOCAL_GAP, _REMOTE_GAP = 2**12, 2**20  # bytes that are read along rather than begin another read behind them
_JOINED = np.dtype([("document", "<i8"), ("other", "<i8"), ("equal", "<i4")])
_RANK = np.dtype("<u8")


@dataclass(frozen=True)
class NearDuplicates(Search):
    """Drops all but one of each group of documents that are joined by similar pairs."""

    minhash: MinHash
    threshold: float
    """Least Jaccard similarity of a similar pair, as its signatures estimate it."""

    name = "near_duplicate"

    @property
    def least(self) -> int:
        """Places in which the signatures of a similar pair agree at least."""
        return int(np.ceil(self.threshold * self.minhash.permutations - 1e-9))

    def parts(self, job: Job) -> int:
        """How many parts the keys of bands are divided into, one of which is looked at at a time."""
        bands = len(job.documents) * self.minhash.bands
        return -(-bands // min(max(bands // _PARTS, _FEW_BANDS), _MANY_BANDS))

    def notes(self, job: Job, shard: int) -> Notes:
        return _Signatures(self, job, shard)

    def passes(self, job: Job) -> Iterator[Pass]:
        done = functools.partial(_counts_path, job.directory, "similar")
        yield Pass("comparing signatures", _find_similar, [1] * self.parts(job), done, "parts")
        done = functools.partial(_counts_path, job.directory, "near")
        yield Pass("grouping", _choose, [1], done, "corpus")

    def dropped(self, job: Job, shard: int) -> Mapping[int, Mapping[str, Any]]:
        rows = np.frombuffer(_path(job, "near", shard).read_bytes(), _JOINED)
        return {
            document: {"reason": self.name, "of": of, "similarity": round(equal / self.minhash.permutations, 4)}
            for document, of, equal in rows.tolist()
        }

    def compared(self, job: Job) -> Compared:
        """What was compared, in all parts."""
        parts = (_counts_path(job.directory, "similar", part).read_bytes() for part in range(self.parts(job)))
        counts = [json.loads(part) for part in parts]
        return Compared(**{name: sum(each[name] for each in counts) for name in counts[0]})

    def summary(self, job: Job) -> str:
        count = json.loads(_counts_path(job.directory, "near", 0).read_bytes())["documents"]
        total = self.compared(job)
        left_out = f", {total.left_out:,} in {total.large_buckets:,} large buckets were not" if total.left_out else ""
        return f"{count:,} documents are almost the same as another; {total.pairs:,} pairs were compared{left_out}"


def _path(job: Job, name: str, number: int) -> epath.Path:
    return job.progress / f"{name}-{number:05}.bin"


def _counts_path(directory: epath.Path, name: str, number: int) -> epath.Path:
    """The file, written last, that says that an element is made, and what was counted."""
    return directory / PROGRESS / f"{name}-{number:05}.json"


class _Signatures:
    """The signatures of a shard's documents, made for many texts at a time: about a kilobyte for each document."""

    def __init__(self, search: NearDuplicates, job: Job, shard: int) -> None:
        self._search, self._job, self._shard = search, job, shard
        count, minhash = len(job.documents_of(shard)), search.minhash
        self._signatures = np.zeros((count, minhash.permutations), "<u4")
        self._keys = np.zeros((count, minhash.bands), np.uint64)
        self._hashes = np.zeros(count, np.uint64)
        self._ranks = np.zeros(count, _RANK)
        self._texts: dict[int, str] = {}
        self._characters = 0

    def add(self, document: int, text: str) -> None:
        place = document - self._job.bounds[self._shard]
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        self._ranks[place] = (len(text) << 32) | int.from_bytes(digest, "big")
        self._texts[place] = text
        self._characters += len(text)
        if self._characters >= _SIGNED_CHARACTERS:
            self._sign()

    def write(self) -> None:
        self._sign()
        job, shard, parts = self._job, self._shard, self._search.parts(self._job)
        write_whole(_path(job, "signatures", shard), self._signatures.reshape(-1).view(np.uint8).data)
        write_whole(_path(job, "ranks", shard), self._ranks.tobytes())
        some = np.flatnonzero((self._ranks > 0) & (self._signatures != self._search.minhash.nothing).any(axis=1))
        del self._signatures  # which is most of what is held
        bands = np.empty((len(some), self._keys.shape[1]), BANDED)
        bands["key"], bands["signature"] = self._keys[some], self._hashes[some, None]
        bands["document"] = (some + job.bounds[shard])[:, None]
        bands = bands.reshape(-1)
        write_partitioned(_path(job, "bands", shard), bands, parts_of(bands["key"], parts), parts)

    def _sign(self) -> None:
        if self._texts:
            places, minhash = list(self._texts), self._search.minhash
            self._signatures[places] = signatures = minhash.signatures(list(self._texts.values()))
            self._keys[places], self._hashes[places] = minhash.band_keys(signatures), signature_keys(signatures)
        self._texts, self._characters = {}, 0


def _search(job: Job) -> NearDuplicates:
    return next(search for search in job.searches if isinstance(search, NearDuplicates))


def _find_similar(job: Job, part: int, count: Count) -> None:
    """Write, for the shards, which documents the similar pairs of a part join: each with another of its group and the
    places in which its signature agrees with the most similar one."""
    search, paths = _search(job), (_path(job, "bands", shard) for shard in range(job.shards))
    bands = read_part_of_all(paths, part, search.parts(job), BANDED, functools.partial(count, 0, 0, 0))
    buckets = buckets_of(bands, search.minhash.permutations)
    del bands
    # Documents go by their places among those in a bucket with others: memory is for a part, not for the corpus.
    documents = np.unique(np.concatenate([buckets.documents, *buckets.identical[:2]]))
    forest, most, compared = Forest(len(documents)), np.zeros(len(documents), np.int32), Compared()
    for pairs in similar_pairs(buckets, functools.partial(_signatures, job), search.least, compared):
        left, right = (np.searchsorted(documents, side) for side in pairs[:2])
        forest.join(left, right)
        for side in (left, right):
            np.maximum.at(most, side, pairs.equal.astype(np.int32))
        count(0, 0, 0)
    found = np.flatnonzero(most)
    joined = np.empty(len(found), _JOINED)
    joined["document"], joined["other"], joined["equal"] = documents[found], documents[forest.roots(found)], most[found]
    write_partitioned(_path(job, "similar", part), joined, job.shards_of(joined["document"]), job.shards)
    write_whole(_counts_path(job.directory, "similar", part), json.dumps(asdict(compared)))
    count(1, 0, 0)


def _choose(job: Job, number: int, count: Count) -> None:
    """Write, for each shard, which documents of groups do not stay: each with the one that stays and the places in
    which its signature agrees with the most similar one.

    Of a group stays the longest text, of several that one with the largest hash, and of equal ones the first. Memory:
    17 bytes for each document of the corpus, in files where that is much.
    """
    search, documents = _search(job), job.bounds[-1]
    forest, most = Forest(documents), zeros(documents, np.min_scalar_type(search.minhash.permutations))
    for part in range(search.parts(job)):
        for shard in range(job.shards):
            joined = read_part(_path(job, "similar", part), shard, job.shards, _JOINED)
            forest.join(joined["document"], joined["other"])
            np.maximum.at(most, joined["document"], joined["equal"].astype(most.dtype))
        count(0, 0, 0)

    def members() -> Iterator[tuple[Integer[np.ndarray, "some"], Integer[np.ndarray, "some"]]]:
        """Of each shard, the documents of groups that no other search drops, and their ranks."""
        for shard in range(job.shards):
            ranks = np.frombuffer(_path(job, "ranks", shard).read_bytes(), _RANK).copy()
            first, end = job.bounds[shard : shard + 2]
            ranks[[document - first for document in dropped_before(job, search, shard)]] = 0
            some = np.flatnonzero((most[first:end] > 0) & (ranks > 0))
            yield some + first, ranks[some]
            count(0, 0, 0)

    highest = zeros(documents, _RANK)
    for some, ranks in members():
        np.maximum.at(highest, forest.roots(some), ranks)
    behind = zeros(documents, forest.dtype)  # the first of the best, counted from the end
    for some, ranks in members():
        roots = forest.roots(some)
        best = ranks == highest[roots]
        np.maximum.at(behind, roots[best], (documents - some[best]).astype(behind.dtype))
    dropped = 0
    for shard, (some, _) in enumerate(members()):
        rows = np.empty(len(some), _JOINED)
        rows["document"], rows["equal"] = some, most[some]
        rows["other"] = documents - behind[forest.roots(some)].astype(np.int64)
        rows = rows[rows["document"] != rows["other"]]
        write_whole(_path(job, "near", shard), rows.tobytes())
        dropped += len(rows)
    write_whole(_counts_path(job.directory, "near", number), json.dumps({"documents": dropped}))
    count(1, 0, 0)


def _signatures(job: Job, documents: Integer[np.ndarray, "documents"]) -> UInt32[np.ndarray, "documents permutations"]:
    """Those of documents, in ascending order, from the files of their shards."""
    loaded = np.empty((len(documents), _search(job).minhash.permutations), np.uint32)
    cuts = np.searchsorted(documents, job.bounds)
    for shard in np.flatnonzero(np.diff(cuts)).tolist():
        some = slice(cuts[shard], cuts[shard + 1])
        _read_rows(_path(job, "signatures", shard), documents[some] - job.bounds[shard], loaded[some])
    return loaded


def _read_rows(path: epath.Path, rows: Integer[np.ndarray, "rows"], target: UInt32[np.ndarray, "rows values"]) -> None:
    """Read rows of numbers of 32 bits, in ascending order, from a file of such rows."""
    width = target.shape[1]
    gap = (_REMOTE_GAP if is_remote(path) else _LOCAL_GAP) // (4 * width)
    runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > gap + 1) + 1)
    with path.open("rb") if is_remote(path) else Path(path).open("rb", buffering=0) as file:
        for run in runs:
            first, last = int(rows[run[0]]), int(rows[run[-1]])
            file.seek(4 * width * first)
            content = np.frombuffer(file.read(4 * width * (last + 1 - first)), "<u4").reshape(-1, width)
            target[run] = content[rows[run] - first]
