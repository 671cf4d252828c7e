"""Attention run by each device on its part of the batch, the heads and the row (context parallelism).

A kernel cannot be partitioned by the compiler, so each device calls it on its own. Where the mesh in use splits rows,
queries are attended to on one device with the keys, values and key segments of the whole row, gathered in the type they
have (the second way of Llama 3, arXiv:2407.21783, section 3.3.2).

A causal row cut into s equal parts would give the last device 2s - 1 times the work of the first. So it is cut into 2s
pieces, of which device d works on d and 2s - 1 - d, the same work for all: the queries are exchanged before, and what
is mixed for them is sent back."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Float, Int

_QUERY = ("batch", "length", "heads", None)
_KEY = ("batch", "length", "kv_heads", None)
_IDS = ("batch", "length")


def pieces_of(parts: int) -> list[tuple[int, int]]:
    """The two pieces of a row that each device of a sequence group works on, in the order in which it holds them: those
    with an even number first, which is the order they arrive in."""
    return [(d, 2 * parts - 1 - d) if d % 2 == 0 else (2 * parts - 1 - d, d) for d in range(parts)]


def piece_count() -> int:
    """Pieces that the mesh in use cuts a row into."""
    parts = sharding.size_of("length")
    return 1 if parts == 1 else 2 * parts


def query_positions(length: int) -> np.ndarray:
    """Position in the row of each query, as the devices of the mesh in use hold them one after the other: `[T]`."""
    parts = sharding.size_of("length")
    if parts == 1:
        return np.arange(length, dtype=np.int32)
    by_piece = np.arange(length, dtype=np.int32).reshape(2 * parts, -1)
    return by_piece[np.ravel(pieces_of(parts))].reshape(-1)


def by_device(
    part: Callable[..., Float[Array, "B T N H"]],
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None,
    constants: Sequence[Any] = (),
    places: Sequence[Any] = (),
) -> Float[Array, "B T N H"]:
    """`part(query, key, value, segments, *constants)` run by each device of the mesh in use.

    Args:
        part: gets the rows and heads of the device, its queries at `query_positions`, and whole rows of keys.
        segments: document of each query and of each key.
        constants: further arguments, split among the devices as `places` say (partition specs).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return part(query_BTNH, key_BSKH, value_BSKH, segments, *constants)
    query, key, ids = (sharding.mesh_axes(axes) for axes in (_QUERY, _KEY, _IDS))
    parts, axis = sharding.size_of("length"), ids[1]

    def on_device(query: Array, key: Array, value: Array, segments: Any, *constants: Any) -> Array:
        if parts == 1:
            return part(query, key, value, segments, *constants)
        key, value = (_gathered(array, axis) for array in (key, value))
        if segments is not None:
            segments = (_exchanged(segments[0], axis, parts), _gathered(segments[1], axis))
        mixed = part(_exchanged(query, axis, parts), key, value, segments, *constants)
        return _exchanged(mixed, axis, parts, back=True)

    return jax.shard_map(
        on_device,
        in_specs=(query, key, key, None if segments is None else (ids, ids), *places),
        out_specs=query,
        check_vma=False,
    )(query_BTNH, key_BSKH, value_BSKH, segments, *constants)


def length_spec(leading: int) -> PartitionSpec:
    """Split as rows are, after so many axes that are not split."""
    return PartitionSpec(*[None] * leading, *sharding.mesh_axes(("length",)))


def _gathered(array: Array, axis: Any) -> Array:
    return jax.lax.all_gather(array, axis, axis=1, tiled=True)


def _exchanged(array: Array, axis: Any, parts: int, *, back: bool = False) -> Array:
    """The two pieces of this device (`pieces_of`) in exchange for the two that lie next to each other in the row."""
    halves = jnp.split(array, 2, axis=1)
    moves = [
        [(piece // 2, device) for device, piece in enumerate(held)] for held in zip(*pieces_of(parts), strict=True)
    ]
    if back:
        moves = [[(there, here) for here, there in move] for move in moves]
    return jnp.concatenate(
        [jax.lax.ppermute(half, axis, move) for half, move in zip(halves, moves, strict=True)], axis=1
    )
