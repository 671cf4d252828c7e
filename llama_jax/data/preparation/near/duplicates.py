"""Near-duplicates of a corpus, in passes: each shard's signatures; by partitions of the bands' keys, which documents are
similar; the groups of all that are joined by that, of which one document stays."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from etils import epath

from llama_jax.core.arrays import Integer, UInt32
from llama_jax.core.files import is_remote, write_whole
from llama_jax.data.preparation.near.forest import Forest, numbers_below
from llama_jax.data.preparation.near.minhash import MinHash, signature_keys
from llama_jax.data.preparation.near.pairs import Compared, buckets_of, similar_pairs
from llama_jax.data.preparation.near.slices import Exchange

SIGNATURES, BANDS, SIMILAR, RANKS, DROPPED = "signatures", "bands", "similar", "ranks", "near"
_SIGNED_CHARACTERS = 2**17  # at once, about 16 MB of temporary arrays
_LOCAL_GAP, _REMOTE_GAP = 2**12, 2**20  # bytes that are rather read than left out, as a read takes longer


@dataclass(frozen=True)
class NearDuplicates:
    """What is settled of the search."""

    exchange: Exchange
    minhash: MinHash
    threshold: float
    """Least estimated Jaccard similarity."""

    @property
    def least(self) -> int:
        """Places in which similar signatures agree at least."""
        return int(np.ceil(self.threshold * self.minhash.permutations - 1e-9))


class Signer:
    """The signatures of a shard's documents, made of many texts at a time."""

    def __init__(self, settings: NearDuplicates, shard: int) -> None:
        self._settings, self._shard = settings, shard
        self._first, end = settings.exchange.bounds[shard : shard + 2]
        self._signatures = settings.minhash.signatures([""] * (end - self._first))
        self._ranks = np.zeros(end - self._first, np.uint64)
        self._places: list[int] = []
        self._texts: list[str] = []
        self._characters = 0

    def add(self, document: int, text: str, digest: bytes) -> None:
        """A document that may be, or have, a near-duplicate.

        Args:
            document: Its number in the corpus.
            digest: Of the text; among near-duplicates of the same length it chooses which one stays.
        """
        place = document - self._first
        self._ranks[place] = (min(len(text), 2**32 - 1) << 32) | int.from_bytes(digest[:4], "little")
        self._places.append(place)
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _SIGNED_CHARACTERS:
            self._sign()

    def finish(self) -> None:
        """Write the shard's files."""
        self._sign()
        exchange, minhash = self._settings.exchange, self._settings.minhash
        write_whole(exchange.path(SIGNATURES, self._shard), self._signatures.astype("<u4", copy=False).tobytes())
        write_whole(exchange.path(RANKS, self._shard), self._ranks.astype("<u8", copy=False).tobytes())
        some = np.flatnonzero(~(self._signatures == 2**32 - 1).all(axis=1))
        signatures = self._signatures[some]
        records = np.empty((len(some), minhash.bands, 3), np.uint64)
        records[:, :, 0] = minhash.band_keys(signatures)
        records[:, :, 1] = signature_keys(signatures)[:, None]
        records[:, :, 2] = (some + self._first)[:, None]
        exchange.to_partitions(BANDS, self._shard, records.reshape(-1, 3))

    def _sign(self) -> None:
        if self._texts:
            self._signatures[self._places] = self._settings.minhash.signatures(self._texts)
        self._places, self._texts, self._characters = [], [], 0


def find_similar(settings: NearDuplicates, partition: int) -> None:
    """Write which documents the similar pairs of a partition join: records (document, another of its group, places in
    which its signature agrees with the most similar one); and what was compared."""
    buckets = buckets_of(settings.exchange.of_partition(BANDS, partition), settings.minhash.permutations)
    # Within a partition, documents go by their places among those that are in a bucket with others.
    documents = np.unique(np.concatenate([buckets.documents, buckets.identical.left, buckets.identical.right]))
    forest, most = Forest(len(documents)), np.zeros(len(documents), np.uint64)
    compared = Compared()
    for pairs in similar_pairs(buckets, lambda some: _signatures(settings, some), settings.least, compared):
        left, right = np.searchsorted(documents, pairs.left), np.searchsorted(documents, pairs.right)
        forest.join(left, right)
        for side in (left, right):
            np.maximum.at(most, side, pairs.equal.astype(np.uint64))
    found = np.flatnonzero(most)
    records = np.stack([documents[found], documents[forest.roots(found)], most[found]], axis=1)
    settings.exchange.to_shards(SIMILAR, partition, records)
    write_whole(compared_path(settings.exchange, partition), json.dumps(asdict(compared)))


def compared_path(exchange: Exchange, partition: int) -> epath.Path:
    """The file with what was compared in a partition."""
    return exchange.folder / f"compared-{partition:05}.json"


def choose(settings: NearDuplicates, dropped: str | None = None) -> None:
    """Write, for each shard, the documents of groups that do not stay: records (document, the one that stays, places in
    which its signature agrees with the most similar one).

    Of a group stays the longest text, of several the one with the largest hash, and of equal ones the first. Memory: 17
    bytes for each document of the corpus.

    Args:
        dropped: What the partitions have for the shards about documents that are left out already.
    """
    exchange = settings.exchange
    forest = Forest(exchange.documents)
    most = np.zeros(exchange.documents, np.min_scalar_type(settings.minhash.permutations))
    for shard in range(exchange.shards):
        records = exchange.of_shard(SIMILAR, shard)
        forest.join(records[:, 0], records[:, 1])
        np.maximum.at(most, records[:, 0], records[:, 2].astype(most.dtype))

    def members() -> Iterator[tuple[int, Integer[np.ndarray, "some"], Integer[np.ndarray, "some"]]]:
        """Of each shard: its number, the documents of groups, and their ranks."""
        for shard in range(exchange.shards):
            first, end = exchange.bounds[shard : shard + 2]
            ranks = np.frombuffer(exchange.path(RANKS, shard).read_bytes(), "<u8").copy()
            if dropped is not None:
                ranks[exchange.of_shard(dropped, shard)[:, 0] - np.uint64(first)] = 0
            some = np.flatnonzero((most[first:end] > 0) & (ranks > 0))
            yield shard, some + first, ranks[some]

    highest = np.zeros(exchange.documents, np.uint64)
    for _, documents, ranks in members():
        np.maximum.at(highest, forest.roots(documents), ranks)
    stays = numbers_below(exchange.documents)
    stays[:] = exchange.documents
    for _, documents, ranks in members():
        roots = forest.roots(documents)
        best = ranks == highest[roots]
        np.minimum.at(stays, roots[best], documents[best].astype(stays.dtype))
    for shard, documents, _ in members():
        kept = stays[forest.roots(documents)]
        records = np.stack([documents, kept, most[documents]], axis=1).astype(np.uint64)[kept != documents]
        write_whole(exchange.path(DROPPED, shard), records.astype("<u8", copy=False).tobytes())


def dropped_near(exchange: Exchange, shard: int) -> Integer[np.ndarray, "dropped 3"]:
    """What `choose` wrote of a shard."""
    return np.frombuffer(exchange.path(DROPPED, shard).read_bytes(), "<u8").reshape(-1, 3)


def _signatures(
    settings: NearDuplicates, documents: Integer[np.ndarray, "documents"]
) -> UInt32[np.ndarray, "documents permutations"]:
    """Those of some documents, in ascending order, from the files of their shards."""
    bounds, permutations = np.asarray(settings.exchange.bounds, np.uint64), settings.minhash.permutations
    cuts = np.searchsorted(documents, bounds)
    loaded = np.empty((len(documents), permutations), np.uint32)
    for shard in np.flatnonzero(np.diff(cuts)):
        some = slice(cuts[shard], cuts[shard + 1])
        path = settings.exchange.path(SIGNATURES, int(shard))
        _read_rows(path, (documents[some] - bounds[shard]).astype(np.int64), loaded[some])
    return loaded


def _read_rows(path: epath.Path, rows: Integer[np.ndarray, "rows"], target: UInt32[np.ndarray, "rows values"]) -> None:
    """Read some rows, given in ascending order, of a file of rows of numbers of 32 bits."""
    size = 4 * target.shape[1]
    gap = (_REMOTE_GAP if is_remote(path) else _LOCAL_GAP) // size
    runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > gap) + 1)
    with path.open("rb") as file:
        for run in runs:
            first, last = int(rows[run[0]]), int(rows[run[-1]])
            file.seek(first * size)
            content = np.frombuffer(file.read((last + 1 - first) * size), "<u4").reshape(-1, target.shape[1])
            target[run] = content[rows[run] - first]
