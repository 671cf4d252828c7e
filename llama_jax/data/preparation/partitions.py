"""Tables in files from which one part is read: written by one pass by its elements, read by the next across them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from etils import epath

from llama_jax.core.arrays import Int, Integer, Shaped
from llama_jax.core.files import is_remote, write_whole

_BOUND = np.dtype("<i8")


def write_partitioned(
    path: epath.Path, rows: Shaped[np.ndarray, "rows"], parts: Int[np.ndarray, "rows"], count: int
) -> None:
    """Write rows, of any type without objects, so that those of one part are together, in their order.

    Args:
        parts: Of each row the part it belongs to, from 0 to before `count`.
    """
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(count + 1)).astype(_BOUND)
    write_whole(path, b"".join([bounds.tobytes(), rows[order].view(np.uint8).data]))


def read_part(path: epath.Path, part: int, count: int, dtype: np.dtype) -> Shaped[np.ndarray, "rows"]:
    """The rows of one part, in the order in which they were written.

    Args:
        count: Number of parts that the file was written with.
        dtype: Type of the rows that were written.
    """
    with path.open("rb") if is_remote(path) else Path(path).open("rb", buffering=0) as file:
        file.seek(part * _BOUND.itemsize)
        start, stop = np.frombuffer(file.read(2 * _BOUND.itemsize), _BOUND)
        file.seek((count + 1) * _BOUND.itemsize + int(start) * dtype.itemsize)
        return np.frombuffer(file.read(int(stop - start) * dtype.itemsize), dtype)


def read_part_of_all(
    paths: Iterable[epath.Path], part: int, count: int, dtype: np.dtype, tick: Callable[[], None]
) -> Shaped[np.ndarray, "rows"]:
    """The rows of one part in several files, one file after the other; `tick` is called after each. See `read_part`."""
    pieces = []
    for path in paths:
        pieces.append(read_part(path, part, count, dtype))
        tick()
    return np.concatenate(pieces)


def parts_of(keys: Integer[np.ndarray, "keys"], count: int) -> Int[np.ndarray, "keys"]:
    """Of keys of 64 bits, evenly spread, the part that each belongs to: ranges of equal length, in order."""
    half = np.uint64(32)
    return ((keys >> half) * np.uint64(count) >> half).astype(np.int64)


def rows_in(path: epath.Path, count: int) -> int:
    """How many rows the file holds, of all of its `count` parts."""
    with path.open("rb") as file:
        file.seek(count * _BOUND.itemsize)
        return int(np.frombuffer(file.read(_BOUND.itemsize), _BOUND)[0])
