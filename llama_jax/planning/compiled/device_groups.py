"""Which devices a collective of a compiled program lets exchange with each other, and how they lie in the mesh."""

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jax.sharding import Mesh

from llama_jax.planning.compiled.hlo import Instruction, Module

Groups: TypeAlias = Sequence[Sequence[int]]
"""Numbers of the devices of each group."""


def device_groups(module: Module, instruction: Instruction) -> Groups:
    """The groups as the text numbers devices: partitions of the program, or for what crosses TPU slices, slices from 0.
    Of a `collective-permute`, each sender with its receiver."""
    if instruction.opcode.startswith("collective-permute"):
        pairs = instruction.attribute(r"source_target_pairs=\{(.*?\})\}")
        return [[int(source), int(target)] for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs)]
    if instruction.opcode == "send":
        slices, _, _ = instruction.attribute(r'_xla_megascale_target="([^"]*)"').partition("x")
        return [[number - 1 for number in group] for group in _listed(slices)]
    # mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b','a':(1)2}
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", instruction.text)
    if mesh:
        return _along_axes(*mesh.groups(default=""))
    # [groups,devices in each]<=[…]T(…)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", instruction.text)
    if iota:
        return _iota(iota[3]).reshape(int(iota[1]), int(iota[2])).tolist()
    listed = instruction.attribute(r"replica_groups=\{(\{.*?\})\}")
    return _listed(listed) if listed else [list(range(module.num_devices))]


def _listed(text: str) -> list[list[int]]:
    return [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers from 0 on in the first shape, transposed as the second says, in a row."""
    shape, _, order = (part.rstrip(")]").lstrip("[") for part in text.partition("T("))
    sizes = [int(size) for size in shape.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return (numbers.transpose([int(axis) for axis in order.split(",")]) if order else numbers).reshape(-1)


def _along_axes(mesh: str, device_ids: str, axes: str) -> Groups:
    """Groups along axes of a mesh. Part of an axis is written `'a':(2)4`: of its factors, the one of size 4 that comes
    after those of product 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    if not device_ids:
        devices = np.arange(math.prod(sizes.values()))
    elif device_ids.startswith("["):
        devices = _iota(device_ids)
    else:
        devices = np.array([int(number) for number in device_ids.split(",")])
    factors: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
    wanted: list[tuple[str, int]] = []
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes):
        if size:
            factors[name] = [int(before), int(size), sizes[name] // (int(before) * int(size))]
        wanted.append((name, 1 if size else 0))
    names = [(name, index) for name, parts in factors.items() for index in range(len(parts))]
    devices = devices.reshape([size for parts in factors.values() for size in parts])
    return _along(devices, [names.index(axis) for axis in wanted])


def _along(devices: np.ndarray, last: Sequence[int]) -> Groups:
    """Groups of an array of devices along dimensions of it."""
    first = [axis for axis in range(devices.ndim) if axis not in last]
    group = math.prod(devices.shape[axis] for axis in last)
    return devices.transpose([*first, *last]).reshape(-1, group).tolist()


def in_mesh(module: Module, instruction: Instruction, mesh: Mesh) -> Groups:
    """The groups as positions in `mesh.devices.flat`.

    A program for several TPU slices is written for one of them: its numbers stand for the devices of each slice, in the
    order in which the mesh has them.
    """
    groups = device_groups(module, instruction)
    slices: dict[int, list[int]] = {}
    for position, device in enumerate(mesh.devices.flat):
        slices.setdefault(getattr(device, "slice_index", 0), []).append(position)
    of_slice = [slices[index] for index in sorted(slices)]
    if instruction.opcode == "send":
        return [[of_slice[number][place] for number in group] for group in groups for place in range(len(of_slice[0]))]
    if module.num_devices < mesh.size:
        return [[positions[number] for number in group] for positions in of_slice for group in groups]
    return groups


def along(mesh: Mesh, axes: Sequence[str]) -> Groups:
    """The groups of devices along axes of the mesh, as positions in `mesh.devices.flat`."""
    positions = np.arange(mesh.size).reshape(mesh.devices.shape)
    return _along(positions, [mesh.axis_names.index(axis) for axis in axes])


def span(groups: Groups, mesh: Mesh) -> tuple[tuple[str, ...], int, int]:
    """The smallest set of mesh axes that has each group along it, and the number of TPU slices, and of processes, that
    a group lies in (of the group that lies in most)."""
    varying: set[int] = set()
    slices = hosts = 1
    devices = mesh.devices.flat
    for group in groups:
        coordinates = np.stack(np.unravel_index(np.array(group), mesh.devices.shape), axis=1)
        varying.update(np.flatnonzero((coordinates != coordinates[0]).any(axis=0)).tolist())
        slices = max(slices, len({getattr(devices[position], "slice_index", 0) for position in group}))
        hosts = max(hosts, len({devices[position].process_index for position in group}))
    return tuple(mesh.axis_names[axis] for axis in sorted(varying)), slices, hosts
