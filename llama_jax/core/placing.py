"""Arrays and batches from the memory of processes onto a mesh."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from llama_jax.core.arrays import Array, Float
from llama_jax.core.batches import ArrayField, Batch
from llama_jax.core.errors import UserError
from llama_jax.core.sharding import mesh_axes, replicated, row_sharding, size_of

AnyBatch = TypeVar("AnyBatch", bound=Batch)


def placed(array: np.ndarray, place: NamedSharding) -> Array:
    """A whole array that every process has, as an array with the given sharding."""
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def placed_rows(array: np.ndarray) -> Array:
    """The same, with its rows split over the mesh in use, if any."""
    mesh = jax.sharding.get_mesh()
    return jnp.asarray(array) if mesh.empty else placed(array, row_sharding(mesh))


def padded_rows(rows: int) -> int:
    """The least number of rows, not below the given one, that the mesh in use divides."""
    parts = size_of("batch")
    return -(-rows // parts) * parts


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Row numbers of a global batch that the devices of this process hold, in order.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    if problem := indivisible_rows(batch_size, size_of("batch", mesh)):
        raise UserError(f"training.batch_size: {problem}")
    slices = row_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (rows,) in filter(None, slices) for row in range(*rows.indices(batch_size))})


def indivisible_rows(rows: int, parts: int) -> str:
    """What is wrong with so many rows on devices that split them into so many parts; nothing where they can."""
    if rows % parts == 0:
        return ""
    return f"{rows} rows are not divisible by the {parts} devices of mesh.data x mesh.fsdp"


def place_batch(mesh: Mesh, kind: type[AnyBatch], rows: Mapping[str, np.ndarray], batch_size: int) -> AnyBatch:
    """The global batch made from the rows that each process holds (`local_rows`), with its normalisers.

    Args:
        rows: arrays by the names of the fields; those without an axis `batch` are whole on every process.
    """
    fields = kind.arrays()
    position = {row: index for index, row in enumerate(local_rows(mesh, batch_size))}

    def place(field: ArrayField, local: np.ndarray) -> Array:
        if "batch" not in field.axes:
            return placed(local, _field_sharding(mesh, field))

        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            mine = [position[row] for row in range(*index[0].indices(batch_size))]
            return local[mine][(slice(None), *index[1:])]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), _field_sharding(mesh, field), block)

    arrays = {name: place(fields[name], array) for name, array in rows.items()}
    totals = {name: _total(arrays[field.total_of]) for name, field in fields.items() if field.total_of is not None}
    return kind(**arrays, **totals)


def place_whole_batch(mesh: Mesh, kind: type[AnyBatch], rows: Mapping[str, np.ndarray], batch_size: int) -> AnyBatch:
    """The same from all rows, which every process has."""
    mine = local_rows(mesh, batch_size)
    by_row = {name for name, field in kind.arrays().items() if "batch" in field.axes}
    return place_batch(
        mesh, kind, {name: array[mine] if name in by_row else array for name, array in rows.items()}, batch_size
    )


def batch_shapes(mesh: Mesh, kind: type[AnyBatch], rows: int, length: int) -> AnyBatch:
    """Shape, type and sharding of each array of a batch of so many rows of so many tokens."""
    fields = kind.arrays().items()
    return kind(
        **{
            name: jax.ShapeDtypeStruct(field.shape(rows, length), field.dtype, sharding=_field_sharding(mesh, field))
            for name, field in fields
        }
    )


def _field_sharding(mesh: Mesh, field: ArrayField) -> NamedSharding:
    if not field.axes:
        return replicated(mesh)
    return NamedSharding(mesh, mesh_axes([axis if isinstance(axis, str) else None for axis in field.axes], mesh))


@jax.jit
def _total(summed: Array) -> Float[Array, ""]:
    return jnp.maximum(summed.sum(dtype=jnp.float32), 1.0)
