"""Whether devices that hold the same arrays hold the same bits. Nothing that training computes looks: a replica that a
faulty chip has changed is trained on, and its gradients spoil all others without a word.

Megatron-LM has this as `--check-weight-hash-across-dp-replicas-interval`.
"""

import functools
import math
from collections import Counter

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.core import sharding, tree
from llama_jax.core.arrays import Array, PyTree, UInt32
from llama_jax.core.errors import CannotGoOnError


class ReplicasDifferError(CannotGoOnError):
    """A device has computed or kept something else than the others."""


class ReplicaChecks:
    """Compares the replicas of a state every so many steps."""

    def __init__(self, every: int, first: int) -> None:
        """
        Args:
            every: steps between two comparisons; 0: none is made.
            first: step that the state was restored from, or 0: all replicas were made of the same then.
        """
        self._every, self._agreed = every, first

    def after(self, step: int, arrays: PyTree) -> None:
        """Compare, if it is time to; see `check_replicas`."""
        if self._every and step % self._every == 0:
            check_replicas(arrays, step, self._agreed)
            self._agreed = step


def check_replicas(arrays: PyTree, step: int, agreed: int) -> None:
    """Compare the replicas of each array, bit for bit, by fingerprints that every device makes of what it holds itself.
    All processes call this together, and raise alike. What each device holds a different part of is not read.

    Args:
        arrays: placed on one mesh.
        step: of the run, for the message.
        agreed: the last step at which no replica differed, for the message.

    Raises:
        ReplicasDifferError: naming the first array that differs, and where.
    """
    leaves = {path: leaf for path, leaf in tree.flatten(arrays).items() if _replicas(leaf) > 1}
    if not leaves:
        return
    places = {path: leaf.sharding for path, leaf in leaves.items()}
    mesh = next(iter(places.values())).mesh
    specs = tuple(place.spec for place in places.values())
    words = jax.device_get(_fingerprints(mesh, specs, tuple(leaves.values())))
    found = zip(places, map(_odd_devices, places.values(), words), strict=True)
    problems = [f"{path}: {devices}" for path, devices in found if devices]
    if problems:
        more = f"; and {len(problems) - 1} more arrays" if len(problems) > 1 else ""
        raise ReplicasDifferError(
            f"step {step}: replicas of the same array differ, in {problems[0]}{more}; a device computes or keeps wrong "
            f"numbers. Take its host out of the job, and go on from step {agreed} or before (--resume N): checkpoints "
            "after it may be spoiled"
        )


def _replicas(leaf: Array) -> int:
    """How many devices hold each part of an array; 1 for one that lies on no mesh."""
    place = leaf.sharding
    return place.mesh.size // math.prod(_split(place).values()) if isinstance(place, NamedSharding) else 1


def _split(place: NamedSharding) -> dict[str, int]:
    """The mesh axes that part an array, with their sizes."""
    parts = (part if isinstance(part, tuple) else (part,) for part in place.spec if part is not None)
    return {name: place.mesh.shape[name] for names in parts for name in names}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fingerprints(
    mesh: Mesh, specs: tuple[PartitionSpec, ...], leaves: tuple[Array, ...]
) -> tuple[UInt32[Array, "devices 2"], ...]:
    """Of what each device of the mesh holds of each array, the devices in the order of the mesh."""
    each = jax.shard_map(
        lambda leaves: tuple(words[None] for words in tree.fingerprints(leaves)),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,  # that replicas are alike is the question
    )(leaves)
    return jax.lax.with_sharding_constraint(each, sharding.replicated(mesh))


def _odd_devices(place: NamedSharding, words: UInt32[np.ndarray, "devices 2"]) -> str:
    """Which devices hold something else than most replicas of the same part; nothing where all agree."""
    devices = np.asarray(place.mesh.devices)
    odd = [number for replicas in _groups(place, devices.shape) for number in _minority(replicas, words)]
    return ", ".join(f"device {devices.flat[n].id} of process {devices.flat[n].process_index}" for n in odd)


def _groups(place: NamedSharding, mesh_shape: tuple[int, ...]) -> list[list[int]]:
    """The devices that hold the same part, by their numbers in the mesh, for each part."""
    split = _split(place)
    alike = [axis for axis, name in enumerate(place.mesh.axis_names) if name not in split]
    numbers = np.moveaxis(np.arange(math.prod(mesh_shape)).reshape(mesh_shape), alike, range(-len(alike), 0))
    return numbers.reshape(-1, math.prod(mesh_shape[axis] for axis in alike)).tolist()


def _minority(replicas: list[int], words: UInt32[np.ndarray, "devices 2"]) -> list[int]:
    """Those that differ from more than half; all, where no such half agrees: then nothing tells which are wrong."""
    found = {number: words[number].tobytes() for number in replicas}
    most, count = Counter(found.values()).most_common(1)[0]
    return [number for number in replicas if found[number] != most or 2 * count <= len(replicas)]
