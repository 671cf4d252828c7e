"""Attention run by each device on its part of the batch, the heads and the row (context parallelism).

A kernel cannot be partitioned by the compiler, so each device calls it on its own. Where the mesh in use splits rows,
there are two ways:

- `by_device`: the queries of a device meet the keys and values of the whole row, gathered in the type they have (as
  for Llama 3, arXiv:2407.21783, section 3.3.2). A causal row cut into s equal parts would give the last device 2s - 1
  times the work of the first. So it is cut into 2s pieces, of which device d works on d and 2s - 1 - d, the same work
  for all: the queries are exchanged before, and what is mixed for them is sent back.
- `by_heads`: each device gets the whole row for its share of the heads (DeepSpeed-Ulysses, arXiv:2309.14509), for a
  kernel that must begin with the first query."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Bool, Float, Int

CHECKPOINT_NAME = "attention"
"""What the policies of `jax.checkpoint` call the results of attention that the backward pass needs: the mix of values,
and the statistics of the softmax where these are kept."""


class SegmentIds(NamedTuple):
    """What queries see beside what comes before them: arrays, or what stands for them."""

    queries: Any
    """Document of each query `[B, T]`."""
    keys: Any
    """Document of each key `[B, S]`."""
    prefixes: Any = None
    """A second document that each query sees, such as the prompt that completions share `[B, T]`; its own: no other.
    None: no query sees another."""


Segments: TypeAlias = SegmentIds | None
"""None where a row is one document."""
Part: TypeAlias = Callable[..., Float[Array, "B T N H"]]
"""`part(query, key, value, segments, *constants)`: attention on what one device holds."""

_QUERY = ("batch", "length", "heads", None)
_KEY = ("batch", "length", "kv_heads", None)
_IDS = ("batch", "length")


def pieces() -> list[tuple[int, ...]]:
    """The pieces of a row that each device of a sequence group works on, in the order in which it holds them.

    Of two pieces, the one with an even number comes first: that is the order in which they arrive."""
    parts = sharding.size_of("length")
    if parts == 1:
        return [(0,)]
    return [(d, 2 * parts - 1 - d) if d % 2 == 0 else (2 * parts - 1 - d, d) for d in range(parts)]


def piece_count() -> int:
    """Pieces that the mesh in use cuts a row into."""
    return sum(map(len, pieces()))


def query_positions(length: int) -> np.ndarray:
    """Position in the row of each query, as the devices of a sequence group hold them one after the other: `[T]`."""
    by_piece = np.arange(length, dtype=np.int32).reshape(piece_count(), -1)
    return by_piece[np.ravel(pieces())].reshape(-1)


def length_spec(leading: int) -> PartitionSpec:
    """Split as rows are, after so many axes that are not split."""
    return PartitionSpec(*[None] * leading, _axis())


def seen(
    queries: Int[Array, "B T"], keys: Int[Array, "B S"], prefixes: Int[Array, "B T"] | None
) -> Bool[Array, "B T S"]:
    """Which keys are of a document that a query sees."""
    visible = queries[:, :, None] == keys[:, None, :]
    return visible if prefixes is None else visible | (prefixes[:, :, None] == keys[:, None, :])


def by_device(
    part: Part,
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
    constants: Sequence[Any] = (),
    places: Sequence[Any] = (),
) -> Float[Array, "B T N H"]:
    """`part` run by each device of the mesh in use on its rows and heads: queries at its share of `query_positions`,
    and the keys, values and key segments of whole rows.

    Args:
        constants: further arguments of `part`, split among the devices as `places` say (partition specs).
    """
    axis = _axis()

    def with_whole_keys(query: Array, key: Array, value: Array, segments: Segments, *constants: Any) -> Array:
        key, value = (_gathered(array, axis) for array in (key, value))
        if segments is not None:
            of_queries = (segments.queries, segments.prefixes)
            queries, prefixes = jax.tree.map(lambda ids: _exchanged(ids, axis), of_queries)
            segments = SegmentIds(queries, _gathered(segments.keys, axis), prefixes)
        mixed = part(_exchanged(query, axis), key, value, segments, *constants)
        return _exchanged(mixed, axis, back=True)

    run = part if axis is None else with_whole_keys
    return _on_mesh(run, query_BTNH, key_BSKH, value_BSKH, segments, constants, places)


def by_heads(
    part: Part,
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
) -> Float[Array, "B T N H"]:
    """`part` run by each device of the mesh in use on whole rows, for its share of the heads that it holds.

    The devices that split a row must divide the query heads of each. Key/value heads that they do not divide are sent
    to all whose queries read them."""
    axis, parts = _axis(), sharding.size_of("length")

    def with_whole_rows(query: Array, key: Array, value: Array, segments: Segments) -> Array:
        copies = parts // math.gcd(parts, key.shape[2])
        key, value = (jnp.repeat(array, copies, axis=2) for array in (key, value))
        query, key, value = (_transposed(array, axis, split=2, joined=1) for array in (query, key, value))
        if segments is not None:
            segments = SegmentIds(_gathered(segments.queries, axis), _gathered(segments.keys, axis))
        return _transposed(part(query, key, value, segments), axis, split=1, joined=2)

    return _on_mesh(part if axis is None else with_whole_rows, query_BTNH, key_BSKH, value_BSKH, segments, (), ())


def _on_mesh(
    run: Part, query: Array, key: Array, value: Array, segments: Segments, constants: Sequence, places: Sequence
) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    # (One device alone would still add up each gradient over itself, and copy it for that.)
    if mesh.empty or mesh.size == 1:
        return run(query, key, value, segments, *constants)
    by_query, by_key, by_token = (sharding.mesh_axes(axes) for axes in (_QUERY, _KEY, _IDS))
    return jax.shard_map(
        run,
        in_specs=(by_query, by_key, by_key, jax.tree.map(lambda _: by_token, segments), *places),
        out_specs=by_query,
        check_vma=False,
    )(query, key, value, segments, *constants)


def _axis() -> Any:
    """The mesh axis that splits rows; None where none does."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    return sharding.mesh_axes(("length",))[0]


def _gathered(array: Array, axis: Any) -> Array:
    return jax.lax.all_gather(array, axis, axis=1, tiled=True)


def _transposed(array: Array, axis: Any, *, split: int, joined: int) -> Array:
    return jax.lax.all_to_all(array, axis, split_axis=split, concat_axis=joined, tiled=True)


def _exchanged(array: Array, axis: Any, *, back: bool = False) -> Array:
    """The two pieces of this device (`pieces`) in exchange for the two that lie next to each other in the row."""
    moves = [[(piece // 2, device) for device, piece in enumerate(held)] for held in zip(*pieces(), strict=True)]
    if back:
        moves = [[(there, here) for here, there in move] for move in moves]
    halves = zip(jnp.split(array, 2, axis=1), moves, strict=True)
    return jnp.concatenate([jax.lax.ppermute(half, axis, move) for half, move in halves], axis=1)
