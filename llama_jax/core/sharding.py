"""Where every array lives: the mesh, and the one table from logical axes to mesh axes.

Modules name the logical axes of what they make; only this file knows the mesh axes behind the names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_jax.core import tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MESH_AXES, MeshConfig
from llama_jax.core.errors import UserError

Axes: TypeAlias = tuple[str | None, ...]
"""Logical name of each axis of an array; None for an axis that is never split."""

BATCH_MESH_AXES = ("data", "fsdp")

TABLE: Mapping[str, str | tuple[str, ...] | None] = {
    # Every device of data and fsdp works on rows of its own: fsdp is data parallelism with sharded storage.
    "batch": BATCH_MESH_AXES,
    # Rows of a whole fsdp group, where its devices share them.
    "group": "data",
    # A sequence stays whole on a device.
    "length": None,
    # Layers are scanned one after the other; splitting this axis would leave devices idle.
    "layers": None,
    # The model width of every matrix: storage is split, and gathered for use one layer at a time.
    "embed": "fsdp",
    # The axes of Megatron's tensor parallelism (arXiv:1909.08053): column-parallel in, row-parallel out, so that one
    # reduction follows the attention and one the MLP.
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    # Norm scales are a few kilobytes; gathering them would cost a latency for nothing.
    "norm": None,
    # The residual stream is whole on each device of a tensor group.
    "residual": None,
    # Factors of adapters are split along their other axis; a rank is too small to be shared out.
    "rank": None,
    # Any row may ask for any of the adapters.
    "adapters": None,
    # The scales of the blocks of a quantised matrix: too few along the input axis to be split there.
    "block_scales": ("tensor", "fsdp"),
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the given devices (all by default), in an order that suits the interconnect.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices):
        asked = " x ".join(f"{axis} {getattr(config, axis)}" for axis in MESH_AXES)
        raise UserError(f"mesh: {asked} does not make {len(devices)} devices; -1 takes what is left")
    # Auto: the compiler propagates shardings from the constraints. The default, Explicit, makes constraints assertions.
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto, devices=devices)


def mesh_axes(axes: Sequence[str | None], name: str = "an array") -> PartitionSpec:
    """Look the logical axes up in the table.

    Raises:
        KeyError: an axis is not in the table; `name` says whose.
    """
    for axis in axes:
        if axis is not None and axis not in TABLE:
            raise KeyError(f"{name} has a logical axis '{axis}' that core.sharding.TABLE does not know")
    return PartitionSpec(*(None if axis is None else TABLE[axis] for axis in axes))


def constrain(array: Array, axes: Axes) -> Array:
    """Fix the layout of an intermediate array under the mesh in use (`jax.set_mesh`); without a mesh, do nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, mesh_axes(axes))


def gathered(weight: Array, axes: Axes, dtype: np.dtype) -> Array:
    """A weight as it enters a matrix product: cast where it is stored, then gathered along `fsdp` in that type.

    Both constraints are needed. Without the first the compiler may gather float32 and cast afterwards, twice the
    bytes; without the second it may gather a reshaped view a second time in the backward pass.
    """
    weight = constrain(weight.astype(dtype), axes)
    return constrain(weight, tuple(None if axis == "embed" else axis for axis in axes))


def over_rows(
    function: Callable[..., PyTree], shared: int, rows_out: Sequence[bool]
) -> Callable[..., tuple[PyTree, ...]]:
    """`function` run by each part of the batch on the rows it holds, under the mesh in use.

    A sum over rows inside a loop would be reduced over all devices in every turn of the loop; run this way it stays
    local and is reduced once. The first `shared` arguments are the same for all rows, the others have rows first.
    `rows_out` says of each result whether it has rows first; the others are summed over the parts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape[axis] == 1 for axis in BATCH_MESH_AXES):
        return function
    rows, whole = PartitionSpec(BATCH_MESH_AXES), PartitionSpec()

    def on_part(*arguments: PyTree) -> tuple[PyTree, ...]:
        results = function(*arguments)
        return tuple(
            result if has_rows else jax.lax.psum(result, BATCH_MESH_AXES)
            for result, has_rows in zip(results, rows_out, strict=True)
        )

    def run(*arguments: PyTree) -> tuple[PyTree, ...]:
        return jax.shard_map(
            on_part,
            in_specs=tuple(whole if index < shared else rows for index in range(len(arguments))),
            out_specs=tuple(rows if has_rows else whole for has_rows in rows_out),
            axis_names=set(BATCH_MESH_AXES),
            check_vma=False,
        )(*arguments)

    return run


def shardings_of(mesh: Mesh, shapes: PyTree, axes: PyTree) -> PyTree:
    """A sharding for each leaf of `shapes` (a tree of dictionaries) from its logical axes.

    Raises:
        KeyError: a parameter has an axis that the table does not know.
        UserError: the mesh does not divide a parameter.
    """
    shapes_by_path, axes_by_path = tree.flatten(shapes), tree.flatten(axes)
    shardings = {}
    for path, shape in shapes_by_path.items():
        names = tuple(axes_by_path[path])
        sharding = NamedSharding(mesh, mesh_axes(names, path))
        for size, axis, split in zip(shape.shape, names, sharding.spec, strict=True):
            if split is not None and size % (parts := _parts(mesh, split)):
                raise UserError(f"mesh.{split}: {parts} devices do not divide the {size} of axis '{axis}' of {path}")
        shardings[path] = sharding
    return tree.unflatten(shardings)


def shardings_like(mesh: Mesh, shapes: PyTree, parameter_shardings: PyTree) -> PyTree:
    """Shardings of a tree that holds copies of the parameter tree (moments of an optimizer): a leaf whose path ends
    in that of a parameter is placed like it, any other (a counter) is replicated."""
    by_path = tree.flatten(parameter_shardings)

    def sharding(path: str) -> NamedSharding:
        parts = path.split("/")
        suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((by_path[suffix] for suffix in suffixes if suffix in by_path), replicated(mesh))

    leaves = [sharding(path) for path in tree.flatten(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """`jax.ShapeDtypeStruct`s that carry their sharding, the form in which restoring and compiling want a tree."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the devices that split the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_MESH_AXES))


def placed(array: np.ndarray, place: NamedSharding) -> Array:
    """A whole array that every process has, as an array with the given sharding."""
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def batch_parts(mesh: Mesh) -> int:
    """Number of parts the rows of a batch are split into."""
    return _parts(mesh, BATCH_MESH_AXES)


def _parts(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
    return int(np.prod([mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes)]))


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Row numbers of a global batch that the devices of this process hold, in order.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    if batch_size % batch_parts(mesh):
        raise UserError(
            f"training.batch_size: {batch_size} rows are not divided by the {batch_parts(mesh)} devices of "
            "mesh.data x mesh.fsdp"
        )
    slices = row_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (rows,) in filter(None, slices) for row in range(*rows.indices(batch_size))})


def place_batch(mesh: Mesh, rows: Mapping[str, np.ndarray], batch_size: int) -> TokenBatch:
    """The global batch made from the rows that each process holds (`local_rows`), with its normaliser."""
    position = {row: index for index, row in enumerate(local_rows(mesh, batch_size))}

    def place(local: np.ndarray) -> Array:
        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return local[[position[row] for row in range(*index[0].indices(batch_size))]]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), row_sharding(mesh), block)

    placed = {name: place(local) for name, local in rows.items()}
    return TokenBatch(**placed, normalizer=_total(placed["loss_weights"]))


@jax.jit
def _total(weights: Array) -> Array:
    # At least 1, so that a batch of nothing but padding has loss 0 instead of 0/0.
    return jax.numpy.maximum(weights.sum(dtype=jax.numpy.float32), 1.0)
