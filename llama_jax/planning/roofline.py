"""How long a step takes at least, resource by resource, were each used at its public peak: a model, which has measured
nothing. Takes the sums of a program, not the program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jax.sharding import Mesh

from llama_jax.core.chips import Chip
from llama_jax.planning.compiled.collectives import Collective, wire_bytes
from llama_jax.planning.compiled.device_groups import along

LABEL = "a model from public peak figures, not a measurement"

Resource = Literal["compute", "memory", "interconnect", "network"]


@dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a program on each device, by resource. A model from public peak figures, not a
    measurement."""

    seconds: Mapping[Resource, float]
    """`compute`: FLOPs. `memory`: traffic from and to the device's memory. `interconnect`: between the TPUs of a slice
    or the GPUs of a machine. `network`: between slices or machines. Those are left out of which the chip has no
    figure."""
    by_axes: Mapping[tuple[str, ...], float]
    """`interconnect`, by the mesh axes along which is sent."""
    exposed: float
    """Seconds of what is sent while the schedule has nothing else to do; part of `interconnect` and `network`."""
    unknown: tuple[Resource, ...]
    """Resources that the program uses and the chip has no figure of."""

    @property
    def bound(self) -> Resource:
        """The resource that takes longest."""
        return max(self.seconds, key=lambda resource: self.seconds[resource])

    @property
    def overlapped_seconds(self) -> float:
        """Were everything done at the same time."""
        return max(self.seconds.values())

    @property
    def scheduled_seconds(self) -> float:
        """Were all done at the same time but what the schedule does not overlap."""
        hidden = self.seconds.get("interconnect", 0.0) + self.seconds.get("network", 0.0) - self.exposed
        rest = [self.seconds[resource] for resource in ("compute", "memory") if resource in self.seconds]
        return max(*rest, hidden) + self.exposed

    @property
    def serial_seconds(self) -> float:
        """Were nothing done at the same time."""
        return sum(self.seconds.values())


def roofline(
    chip: Chip, mesh: Mesh, flops: int | float, memory_bytes: int, collectives: Sequence[Collective]
) -> Roofline:
    """The roofline of a program.

    Collectives take the time of ideal algorithms: rings along every torus dimension that the group spans, all at once
    and both ways round (half of that where a dimension has no wraparound link); an all-to-all what has to cross the
    middle of the torus. Those of groups in several slices or machines are done within, and each device sends its share
    of the rest over the network. Collectives are done one after the other.

    Args:
        flops: of one device.
        memory_bytes: from and to the memory of one device.
        collectives: of one device, with their axes.
    """
    seconds: dict[Resource, float] = {"compute": flops / chip.flops, "memory": memory_bytes / chip.memory_bandwidth}
    by_axes: dict[tuple[str, ...], float] = {}
    unknown: dict[Resource, None] = {}
    exposed = 0.0
    for collective in collectives:
        within, between = _shares(chip, collective)
        found: dict[Resource, float | None] = {}
        if within:
            found["interconnect"] = _interconnect_seconds(chip, mesh, collective, within)
        if between:
            found["network"] = None if chip.network_bandwidth is None else between / chip.network_bandwidth
        for resource, value in found.items():
            if value is None:
                unknown[resource] = None
                continue
            seconds[resource] = seconds.get(resource, 0.0) + value
            exposed += 0.0 if collective.overlapped else value
            if resource == "interconnect":
                by_axes[collective.axes] = by_axes.get(collective.axes, 0.0) + value
    for resource in unknown:
        seconds.pop(resource, None)
    return Roofline(seconds, dict(sorted(by_axes.items(), key=lambda item: -item[1])), exposed, tuple(unknown))


def _shares(chip: Chip, collective: Collective) -> tuple[float, float]:
    """Bytes that a device sends within its slice or machine, and to others."""
    islands = collective.slices if chip.platform == "tpu" else collective.hosts
    if islands == 1:
        return float(wire_bytes(collective)), 0.0
    inside, size = collective.group_size / islands, collective.count * collective.bytes
    if collective.kind == "collective-permute":
        return 0.0, float(size)
    if collective.kind.endswith("all-to-all"):
        return size * (inside - 1) / collective.group_size, size * (1 - 1 / islands)
    twice = 2 if collective.kind == "all-reduce" else 1
    return twice * size * (1 - 1 / inside), twice * size * (1 - 1 / islands) / inside


def _interconnect_seconds(chip: Chip, mesh: Mesh, collective: Collective, sent: float) -> float | None:
    if chip.platform == "gpu":
        return None if chip.nvlink_bandwidth is None else sent / chip.nvlink_bandwidth
    if chip.link_bandwidth is None:
        return None
    dimensions = torus_dimensions(mesh, collective.axes, chip)
    if collective.kind == "collective-permute" or not dimensions:
        return sent / chip.link_bandwidth
    if collective.kind.endswith("all-to-all"):
        # Half of the devices send half of what they have across the middle of the longest dimension.
        across = max(length / (4 * links) for length, links in dimensions)
        return collective.count * collective.bytes * across / chip.link_bandwidth
    return sent / (sum(links for _, links in dimensions) * chip.link_bandwidth)


def torus_dimensions(mesh: Mesh, axes: Sequence[str], chip: Chip) -> list[tuple[int, int]]:
    """The dimensions of the torus that a group of TPUs along mesh axes spans: how many chips it has along each, and the
    links with which each chip sends along it, 2 in a ring and 1 in a line.

    Whole dimensions are rings where Cloud TPU has wraparound links: those of 16 chips on v5e and v6e, those of a
    multiple of 4 chips in slices of whole cubes on v4 and v5p.
    """
    devices = list(mesh.devices.flat)
    whole = [max(coordinates) + 1 for coordinates in zip(*(device.coords for device in devices), strict=True)]
    cubes = all(size % 4 == 0 for size in whole)
    groups = along(mesh, axes)
    found = []
    for dimension, size in enumerate(whole):
        length = len({devices[position].coords[dimension] for position in groups[0]})
        wraps = size == 16 if chip.torus_dimensions == 2 else cubes
        if length > 1:
            found.append((length, 2 if wraps and length == size else 1))
    return found
