"""Where every array lives: the one table from logical axes to mesh axes, and the constraints made with it.

Modules name the logical axes of what they make; only this file knows the mesh axes behind the names."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from llama_jax.core import tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import mesh_in_use, platform

Axes: TypeAlias = tuple[str | None, ...]
"""Logical name of each axis of an array; None for an axis that is never split."""

TABLE: Mapping[str, tuple[str, ...]] = {
    # Every device of data and fsdp works on rows of its own: fsdp is data parallelism with sharded storage.
    "batch": ("data", "fsdp"),
    # Rows of a whole fsdp group, where its devices share them.
    "group": ("data",),
    # Long rows are cut; attention alone looks across the cuts.
    "length": ("sequence",),
    # Layers are scanned one after the other; splitting this axis would leave devices idle.
    "layers": (),
    # The model width of every matrix: storage is split, and gathered for use one layer at a time. Devices that share a
    # row would otherwise all hold the same parameters, so they split them too.
    "embed": ("fsdp", "sequence"),
    # The width of embeddings on their way from the parts of the table to the devices whose tokens they are.
    "looked_up": ("fsdp",),
    # The axes of Megatron's tensor parallelism (arXiv:1909.08053): column-parallel in, row-parallel out, so that one
    # reduction follows the attention and one the MLP.
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # Norm scales are a few kilobytes; gathering them would cost a latency for nothing.
    "norm": (),
    # The residual stream is whole on each device of a tensor group.
    "residual": (),
    # Factors of adapters are split along their other axis; a rank is too small to be shared out.
    "rank": (),
    # Any row may ask for any of the adapters.
    "adapters": (),
    # The scales of the blocks of a quantised matrix: too few along the input axis to be split there.
    "block_scales": ("tensor", "fsdp", "sequence"),
}


def _names(axis: str, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes that split a logical axis, those of one device left out."""
    stages = {name: name.partition("_")[0] for name in mesh.axis_names}
    wanted = TABLE[axis]
    return tuple(name for part in wanted for name in stages if stages[name] == part and mesh.shape[name] > 1)


def mesh_axes(
    axes: Sequence[str | None], mesh: Mesh | AbstractMesh | None = None, name: str = "an array"
) -> PartitionSpec:
    """Look the logical axes up in the table.

    Args:
        mesh: None: the one in use.

    Raises:
        KeyError: an axis is not in the table; `name` says whose.
    """
    mesh = mesh_in_use() if mesh is None else mesh
    for axis in axes:
        if axis is not None and axis not in TABLE:
            raise KeyError(f"{name} has a logical axis '{axis}' that core.sharding.TABLE does not know")
    found = [() if axis is None else _names(axis, mesh) for axis in axes]
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in found))


def size_of(axis: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Number of parts that a logical axis is split into; of the mesh in use, if none is given."""
    mesh = mesh_in_use() if mesh is None else mesh
    return math.prod(mesh.shape[name] for name in _names(axis, mesh))


def _fitting(shape: tuple[int, ...], axes: Axes) -> Axes:
    # A length that the mesh does not divide stays whole: a token that is decoded, or a short prompt.
    return tuple(
        None if axis == "length" and size % size_of(axis) else axis
        for size, axis in zip(shape, (*axes, *[None] * len(shape)), strict=False)
    )


def constrain(array: Array, axes: Axes) -> Array:
    """Fix the layout of an intermediate array under the mesh in use (`jax.set_mesh`); without a mesh, do nothing."""
    if mesh_in_use().empty:
        return array
    return jax.lax.with_sharding_constraint(array, mesh_axes(_fitting(array.shape, axes)))


def gathered(weight: Array, axes: Axes, dtype: np.dtype) -> Array:
    """A weight as it enters a matrix product: cast where it is stored, then gathered along its `embed` axis in that
    type. Its gradient goes back to where the weight is stored.

    Both constraints are needed. Without the first the compiler may gather float32 and cast afterwards, twice the
    bytes; without the second it may gather a reshaped view a second time in the backward pass.
    """
    return _gathered(constrain(weight.astype(dtype), axes), axes)


def _whole(weight: Array, axes: Axes) -> Array:
    return constrain(weight, tuple(None if axis == "embed" else axis for axis in axes))


# The forward rules are the plain functions: policies of `jax.checkpoint` look into those, and would keep what comes of
# a function with a rule of its own, which is a whole weight.
_gathered = jax.custom_vjp(_whole, nondiff_argnums=(1,))
_gathered.defvjp(
    lambda weight, axes: (_whole(weight, axes), None),
    lambda axes, _, gradient: (constrain(gradient, axes),),
)


def with_gathered(
    product: Callable[[Array, Array], Array], x: Array, weight: Array, axes: tuple[str, str], dtype: np.dtype
) -> Array:
    """`product(x, weight)` with the gathered weight: `[B, T, I]`, `[I, O]` -> `[B, T, O]`.

    Where the mesh says so (`MeshConfig.fsdp_stages`), the gradient of the weight is reduced by one reduce-scatter for
    each torus dimension, the first of which leaves little for the others. For that the product has to be made by each
    part of the batch: the gradients that the compiler's own partitioning hands out are reduced already.
    """
    mesh = mesh_in_use()
    # Only a batch for training has a gradient to reduce, not one token that declares the parameters or is decoded.
    divided = not mesh.empty and x.shape[0] % size_of("batch") == x.shape[1] % size_of("length") == 0
    if not (divided and any(name.startswith("fsdp_") for name in mesh.axis_names)):
        return product(x, gathered(weight, axes, dtype))
    weight = constrain(weight.astype(dtype), axes)
    along, names = axes.index("embed"), _names("embed", mesh)
    inputs, outputs = (None if axis == "embed" else axis for axis in axes)

    def on_part(x: Array, weight: Array) -> Array:
        made = product(x, _gathered_in_stages(weight, along, names))
        summed = _names(inputs, mesh) if inputs else ()
        return jax.lax.psum(made, summed) if summed else made

    # By hand along all axes of the mesh: of a gradient that the compiler still splits along one, it would scatter the
    # whole along the others.
    return jax.shard_map(
        on_part,
        in_specs=(mesh_axes(("batch", "length", inputs)), mesh_axes(axes)),
        out_specs=mesh_axes(("batch", "length", outputs)),
        check_vma=False,
    )(x, weight)


def _whole_in_stages(weight: Array, along: int, names: tuple[str, ...]) -> Array:
    # Along two dimensions of the torus at once, which has the links of both. Of three at once the compiler makes an
    # all-reduce of zeros and the parts: twice the bytes.
    for together in (*((name,) for name in reversed(names[2:])), names[:2]):
        weight = jax.lax.all_gather(weight, together, axis=along, tiled=True)
    return weight


_gathered_in_stages = jax.custom_vjp(_whole_in_stages, nondiff_argnums=(1, 2))
_gathered_in_stages.defvjp(
    lambda weight, along, names: (_whole_in_stages(weight, along, names), None),
    lambda along, names, _, gradient: (_scattered(gradient, along, names),),
)


def _scattered(partial: Array, along: int, names: tuple[str, ...]) -> Array:
    """The sum of what the parts hold, of which each keeps its share of one axis."""
    for name in names:
        partial = jax.lax.psum_scatter(partial, name, scatter_dimension=along, tiled=True)
    return partial


@dataclass(frozen=True)
class Summed:
    """A result that is added up over the parts of a batch. Of the gradient of a gathered weight, `axes` are the logical
    axes of the weight: each part is left with what it stores of it, where `embed` alone splits the weight."""

    axes: Axes = ()
    dtype: Any = jnp.float32
    """Type of the sum, and of what is sent."""


def over_parts(
    function: Callable[..., PyTree], inputs: Sequence[Axes | None], outputs: Sequence[Axes | Summed]
) -> Callable[..., tuple[PyTree, ...]]:
    """`function` run by each part of the batch on what it holds, under the mesh in use.

    A sum over rows inside a loop would be reduced over all devices in every turn of the loop; run this way it stays
    local and is reduced once.

    Args:
        inputs: leading logical axes of each argument; None: the same for all parts.
        outputs: the same of each result, which is one array if it is summed, and may be a tree of arrays if not.
    """
    mesh = mesh_in_use()
    manual = {name for axis in ("batch", "length", "embed") for name in _names(axis, mesh)}
    if not manual:
        return function
    by_compiler = {name for name in mesh.axis_names if name not in manual and mesh.shape[name] > 1}

    def reduced(result: PyTree, axes: Axes | Summed) -> PyTree:
        if not isinstance(axes, Summed):
            return result
        scattered = _names("embed", mesh) if is_scattered(axes) else ()
        # (XLA for CPU fails on a sum in bfloat16 where another axis of the mesh is left to it.)
        result = result if by_compiler and platform() == "cpu" else result.astype(axes.dtype)
        if scattered:
            result = _scattered(result, axes.axes.index("embed"), scattered)
        rest = sorted(manual - {*scattered})
        return (jax.lax.psum(result, tuple(rest)) if rest else result).astype(axes.dtype)

    def is_scattered(axes: Summed) -> bool:
        # What the compiler splits along another axis it would first put together again.
        return "embed" in axes.axes and all(size_of(axis) == 1 for axis in axes.axes if axis not in ("embed", None))

    def place(axes: Axes | Summed | None) -> PartitionSpec:
        if isinstance(axes, Summed):
            return mesh_axes(tuple("embed" if axis == "embed" else None for axis in axes.axes if is_scattered(axes)))
        return PartitionSpec() if axes is None else mesh_axes(axes)

    def on_part(*arguments: PyTree) -> tuple[PyTree, ...]:
        return tuple(reduced(result, axes) for result, axes in zip(function(*arguments), outputs, strict=True))

    return jax.shard_map(
        on_part,
        in_specs=tuple(map(place, inputs)),
        out_specs=tuple(map(place, outputs)),
        axis_names={*mesh.axis_names} - by_compiler,
        check_vma=False,
    )


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
        shardings[path] = NamedSharding(mesh, mesh_axes(names, mesh, path))
        for size, axis in zip(shape.shape, names, strict=True):
            if axis is not None and size % (parts := size_of(axis, mesh)):
                split = " x ".join(f"mesh.{name}" for name in _names(axis, mesh))
                raise UserError(f"{split}: axis '{axis}' of {path} has size {size}, not divisible by {parts} devices")
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


def bytes_on_a_device(shapes: PyTree) -> int:
    """What arrays, or shapes of them, each with its sharding, take on one device."""

    def size(leaf: Array | jax.ShapeDtypeStruct) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return leaf.dtype.itemsize * math.prod(shape)

    return sum(map(size, jax.tree.leaves(shapes)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the devices that split the batch."""
    return NamedSharding(mesh, mesh_axes(("batch",), mesh))
