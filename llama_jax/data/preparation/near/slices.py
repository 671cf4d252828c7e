"""Files of records that are cut into slices, so that a pass over slices reads of each file only its own: how records are
brought together that belong together, in memory that is bounded. A record is three numbers of 64 bits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath

from llama_jax.core.arrays import Integer
from llama_jax.core.files import write_whole
from llama_jax.data.sources.file_bytes import read_range

_COLUMNS = 3
_NUMBER = np.dtype("<u8")


def slices_of(keys: Integer[np.ndarray, "records"], count: int) -> Integer[np.ndarray, "records"]:
    """The slice, of `count`, for each 64-bit key: about as many keys in each, and equal keys in the same."""
    half = np.uint64(32)
    return ((keys >> half) * np.uint64(count)) >> half


def write_slices(
    path: epath.Path, records: Integer[np.ndarray, "records 3"], slices: Integer[np.ndarray, "records"], count: int
) -> None:
    """Write records, each into one of `count` slices, within which they keep their order.

    The file: where each slice starts, in records, and where the last one ends; then the records; all little-endian
    numbers of 64 bits.
    """
    order = np.argsort(slices.astype(np.min_scalar_type(count)), kind="stable")
    starts = np.searchsorted(slices[order], np.arange(count + 1, dtype=slices.dtype))
    write_whole(path, starts.astype(_NUMBER).tobytes() + records[order].astype(_NUMBER, copy=False).tobytes())


def read_slice(paths: Iterable[epath.Path], number: int, count: int) -> Integer[np.ndarray, "records 3"]:
    """A slice's records in all files, of `count` slices each, in the order of the files."""
    size = _NUMBER.itemsize
    parts = [np.zeros((0, _COLUMNS), _NUMBER)]
    for path in paths:
        start, end = np.frombuffer(read_range(path, size * number, size * (number + 2)), _NUMBER).tolist()
        if start < end:
            places = (size * (count + 1 + _COLUMNS * place) for place in (start, end))
            parts.append(np.frombuffer(read_range(path, *places), _NUMBER).reshape(-1, _COLUMNS))
    return np.concatenate(parts)


def gathered(records: Integer[np.ndarray, "records 3"]) -> Integer[np.ndarray, "some 3"]:
    """The records that have their first number in common with another, in ascending order."""
    order = np.argsort(records[:, 0])
    keys = records[order, 0]
    shared = np.zeros(len(keys), bool)
    np.equal(keys[1:], keys[:-1], out=shared[1:])
    shared[:-1] |= shared[1:]
    some = records[order[shared]]
    return some[np.lexsort(some.T[::-1])]


@dataclass(frozen=True)
class Exchange:
    """Where the passes over shards and over partitions of a key space leave what they tell each other."""

    folder: epath.Path
    bounds: Sequence[int]
    """Number of the first document of each shard, and of the document after the last."""
    partitions: int

    @property
    def shards(self) -> int:
        return len(self.bounds) - 1

    @property
    def documents(self) -> int:
        return self.bounds[-1]

    def path(self, name: str, number: int) -> epath.Path:
        """The file of a shard or partition."""
        return self.folder / f"{name}-{number:05}.bin"

    def to_partitions(self, name: str, shard: int, records: Integer[np.ndarray, "records 3"]) -> None:
        """Write a shard's records, by their first number, for the partitions."""
        write_slices(self.path(name, shard), records, slices_of(records[:, 0], self.partitions), self.partitions)

    def of_partition(self, name: str, partition: int) -> Integer[np.ndarray, "records 3"]:
        """What all shards have for a partition."""
        return read_slice((self.path(name, shard) for shard in range(self.shards)), partition, self.partitions)

    def to_shards(self, name: str, partition: int, records: Integer[np.ndarray, "records 3"]) -> None:
        """Write a partition's records, by their first number, a document's, for the shards."""
        shards = np.searchsorted(np.asarray(self.bounds[1:], np.uint64), records[:, 0], side="right")
        write_slices(self.path(name, partition), records, shards, self.shards)

    def of_shard(self, name: str, shard: int) -> Integer[np.ndarray, "records 3"]:
        """What all partitions have for a shard, in ascending order."""
        paths = (self.path(name, partition) for partition in range(self.partitions))
        records = read_slice(paths, shard, self.shards)
        return records[np.lexsort(records.T[::-1])]
