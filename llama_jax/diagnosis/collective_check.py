"""Whether devices exchange numbers rightly: each collective, along each axis of the mesh, against what numpy makes of
the same numbers. And how fast."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.core.arrays import Array
from llama_jax.core.placing import placed

REPETITIONS = 5
"""The same number on every process, as all take part."""


class Collective(NamedTuple):
    """What the members of a group do together, each with a vector of its own of as many numbers as the others'."""

    name: str
    on_device: Callable[[Array, tuple[str, ...], int], Array]
    """(vector, mesh axes of the group, members) -> vector."""
    expected: Callable[[np.ndarray], np.ndarray]
    """[..., members, numbers] -> [..., members, numbers of the result]."""
    sent: Callable[[int], float]
    """Of how many vectors a member sends the bytes, at the least; the argument is the number of members."""


def _gathered(values: np.ndarray) -> np.ndarray:
    whole = values.reshape(*values.shape[:-2], 1, -1)
    return np.repeat(whole, values.shape[-2], axis=-2)


def _scattered(values: np.ndarray) -> np.ndarray:
    return values.sum(-2).reshape((*values.shape[:-1], -1))


def _exchanged(values: np.ndarray) -> np.ndarray:
    members = values.shape[-2]
    blocks = values.reshape(*values.shape[:-1], members, -1)
    return np.swapaxes(blocks, -3, -2).reshape(values.shape)


def _around(x: Array, axes: tuple[str, ...], members: int) -> Array:
    return jax.lax.ppermute(x, axes, [(member, (member + 1) % members) for member in range(members)])


COLLECTIVES = (
    Collective(
        "all-gather",
        lambda x, axes, _: jax.lax.all_gather(x, axes, tiled=True),
        _gathered,
        lambda members: members - 1,
    ),
    Collective(
        "reduce-scatter",
        lambda x, axes, _: jax.lax.psum_scatter(x, axes, tiled=True),
        _scattered,
        lambda members: (members - 1) / members,
    ),
    Collective(
        "all-reduce",
        lambda x, axes, _: jax.lax.psum(x, axes),
        lambda values: np.broadcast_to(values.sum(-2, keepdims=True), values.shape),
        lambda members: 2 * (members - 1) / members,
    ),
    Collective(
        "all-to-all",
        lambda x, axes, _: jax.lax.all_to_all(x, axes, 0, 0, tiled=True),
        _exchanged,
        lambda members: (members - 1) / members,
    ),
    Collective("permute", _around, lambda values: np.roll(values, 1, axis=-2), lambda _: 1),
)


class Checked(NamedTuple):
    """The outcome of one collective along some axes."""

    name: str
    axes: str
    """The mesh axes, and how many devices are along them: `fsdp 8`."""
    problem: str
    """What is wrong; empty: all numbers that this process holds are right."""
    bytes_per_second: float
    """Sent by each device, the median of `REPETITIONS`, from call to result."""


def groups(mesh: Mesh) -> list[tuple[str, ...]]:
    """Along what to exchange: each axis of more than one device, and all of them together."""
    axes = tuple(name for name in mesh.axis_names if mesh.shape[name] > 1)
    return [(axis,) for axis in axes] + ([axes] if len(axes) > 1 else [])


def check(mesh: Mesh, axes: tuple[str, ...], collective: Collective, payload: int) -> Checked:
    """Try one collective in all groups of devices along `axes` at once.

    Args:
        payload: bytes of the largest vector that a device holds when time is taken.
    """
    members = math.prod(mesh.shape[axis] for axis in axes)
    problem = _wrong(mesh, axes, collective, members)
    # An all-gather ends with the vectors of all.
    numbers = max(1, payload // 4 // members // (members if collective.name == "all-gather" else 1)) * members
    seconds = _seconds(mesh, _program(mesh, axes, collective, members), numbers)
    sent = collective.sent(members) * numbers * 4
    return Checked(collective.name, f"{' x '.join(axes)} {members}", problem, sent / seconds)


def _program(mesh: Mesh, axes: tuple[str, ...], collective: Collective, members: int) -> Callable[[Array], Array]:
    """From and to arrays of the mesh's own shape, one vector a device."""
    places = PartitionSpec(*mesh.axis_names)

    def on_device(block: Array) -> Array:
        result = collective.on_device(block.reshape(-1), axes, members)
        return result.reshape(*block.shape[:-1], -1)

    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=places, out_specs=places, check_vma=False))


def _wrong(mesh: Mesh, axes: tuple[str, ...], collective: Collective, members: int) -> str:
    """The first difference from what numpy says."""
    shape = tuple(mesh.shape.values())
    # Sums of whole numbers below 1,000 over any number of devices that there are have no rounding in float32.
    values = np.random.default_rng(0).integers(0, 1000, (*shape, 4 * members)).astype(np.float32)
    expected = expected_everywhere(values, [list(mesh.axis_names).index(axis) for axis in axes], collective)
    given = placed(values, NamedSharding(mesh, PartitionSpec(*mesh.axis_names)))
    result = _program(mesh, axes, collective, members)(given)
    return _difference(result, expected)


def expected_everywhere(values: np.ndarray, positions: Sequence[int], collective: Collective) -> np.ndarray:
    """The result on every device.

    Args:
        values: `[mesh…, numbers]`.
        positions: of the axes that the groups lie along.
    """
    others = [position for position in range(values.ndim - 1) if position not in positions]
    order = [*others, *positions, values.ndim - 1]
    grouped = values.transpose(order)
    sizes = grouped.shape
    result = collective.expected(grouped.reshape(*sizes[: len(others)], -1, sizes[-1]))
    return result.reshape(*sizes[:-1], -1).transpose(np.argsort(order))


def _difference(result: Array, expected: np.ndarray) -> str:
    """What is wrong on the first device of this process that has something wrong; nothing where all is right."""
    for shard in result.addressable_shards:
        got, wanted = np.asarray(shard.data), expected[shard.index]
        if got.shape != wanted.shape:
            return f"{shard.device} has {got.size} numbers, not {wanted.size}"
        if len(wrong := np.flatnonzero(got != wanted)):
            first = f"{got.flat[wrong[0]]:g} instead of {wanted.flat[wrong[0]]:g}"
            return f"{shard.device} has {len(wrong)} of {got.size} numbers wrong, the first {first}"
    return ""


def _seconds(mesh: Mesh, program: Callable[[Array], Array], numbers: int) -> float:
    place = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    make = functools.partial(jnp.zeros, (*mesh.shape.values(), numbers), jnp.float32)
    x = jax.jit(make, out_shardings=place)()
    jax.block_until_ready(program(x))
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        jax.block_until_ready(program(x))
        times.append(time.perf_counter() - started)
    return statistics.median(times)
