"""Hardware that is not here, by name: which slices of TPUs and clusters of GPUs there are. Loads no compiler."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llama_jax.core.errors import UserError, nearest

_PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBES = ((4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 12), (8, 8, 16), (8, 16, 16), (16, 16, 16))

SLICES: dict[str, tuple[tuple[int, ...], ...]] = {
    "v4": (*_BELOW_A_CUBE, *_CUBES),
    "v5e": _PLANES,
    "v5p": (*_BELOW_A_CUBE, *_CUBES, (16, 16, 24)),
    "v6e": _PLANES,
}
"""Chips along each torus dimension of the slices that each TPU generation is offered in, smallest first
(cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e). Those of v4 and v5p are the usual ones; any other with all dimensions
multiples of 4 in rising order is available too."""

_LARGEST = {"v4": 4096, "v5p": 6144}
"""Chips of the largest slice, where not all are listed."""

_CLOUD_NAMES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
_CORES_A_CHIP = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}
"""By which the cloud's names count (v4-8 is four chips)."""

GPUS_A_HOST = 8
"""GPUs that share one NVLink switch in a DGX or HGX H100."""

_HOW_TO_WRITE = "write v5e:16x16, v5p:8x8x8, v4:4x8x8 or v6e:16x16, a name of the cloud such as v5e-256, or h100:32x8"


@dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    generation: str
    """`v4`, `v5e`, `v5p`, `v6e` or `h100`."""
    shape: tuple[int, ...]
    """TPU: chips along each torus dimension of a slice. GPU: hosts, and GPUs per host."""
    num_slices: int = 1
    """Slices of that shape, joined by the data-centre network."""

    @property
    def platform(self) -> Literal["tpu", "gpu"]:
        return "gpu" if self.generation == "h100" else "tpu"

    @property
    def name(self) -> str:
        """As users write it, such as `v5e:16x16`; the number of slices is not part of it."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def cloud_name(self) -> str | None:
        """What Google Cloud calls the type of a slice, such as `v5litepod-256`; None for GPUs."""
        if self.platform == "gpu":
            return None
        return f"{_CLOUD_NAMES[self.generation]}-{math.prod(self.shape) * _CORES_A_CHIP[self.generation]}"

    @property
    def num_devices(self) -> int:
        """Devices as JAX counts them, of all slices: chips (the two cores of a v4 or v5p chip are one device)."""
        return math.prod(self.shape) * self.num_slices

    def larger(self) -> Iterator["Topology"]:
        """Larger ones of the same kind, smallest first: the slices of the generation; for GPUs, twice the hosts, and
        twice again, up to 4096."""
        if self.platform == "gpu":
            hosts, gpus = self.shape
            shapes = [(hosts * 2**power, gpus) for power in range(1, 13) if hosts * 2**power <= 4096]
        else:
            shapes = [shape for shape in SLICES[self.generation] if math.prod(shape) > math.prod(self.shape)]
        yield from (replace(self, shape=shape) for shape in shapes)


def parse_topology(name: str, num_slices: int = 1) -> Topology:
    """The topology that a name stands for.

    Args:
        name: generation and chips along each dimension of the torus (`v5e:16x16`, `v4:4x8x8`), the cloud's name of a
            slice (`v5litepod-256` or `v5e-256`, `v6e-256`; in cores, as there: `v4-512`, `v5p-1024`), or hosts x GPUs
            (`h100:32x8`).
        num_slices: TPU slices of that topology.

    Raises:
        UserError: there is none of that name; says which there are.
    """
    if num_slices < 1:
        raise UserError(f"num_slices: {num_slices} must be at least 1")
    if match := re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name):
        generation, shape = match[1], tuple(map(int, match[2].split("x")))
        if generation == "h100":
            return _gpus(name, shape, num_slices)
        if generation in SLICES:
            return Topology(generation, _known_shape(name, generation, shape), num_slices)
    elif match := re.fullmatch(r"(\w+)-(\d+)", name):
        generations = {cloud: generation for generation, cloud in _CLOUD_NAMES.items()} | {"v5e": "v5e"}
        if generation := generations.get(match[1]):
            return Topology(generation, _shape_of_count(name, generation, int(match[2])), num_slices)
    known = [*SLICES, "h100"]
    generation = re.split(r"[:-]", name)[0]
    hint = "" if generation in known else nearest(generation, known)
    raise UserError(f"topology: '{name}' is not hardware that can be planned for; {_HOW_TO_WRITE}{hint}")


def _gpus(name: str, shape: tuple[int, ...], num_slices: int) -> Topology:
    if num_slices > 1:
        raise UserError(f"num_slices: {num_slices} are for TPU; for '{name}' ask for more hosts")
    if len(shape) != 2 or shape[0] < 1 or not 1 <= shape[1] <= GPUS_A_HOST:
        raise UserError(f"topology: '{name}' is not hosts x GPUs per host (at most 8), as in h100:32x8")
    return Topology("h100", shape)


def _known_shape(name: str, generation: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    usual = SLICES[generation]
    if shape in usual:
        return shape
    cubes = generation in _LARGEST and len(shape) == 3 and list(shape) == sorted(shape) and shape[0] > 0
    if cubes and all(size % 4 == 0 for size in shape) and math.prod(shape) <= _LARGEST[generation]:
        return shape
    chips = math.prod(shape)
    closest = min(usual, key=lambda other: (sorted(other) != sorted(shape), abs(math.prod(other) - chips)))
    raise UserError(
        f"topology: '{name}' is not a slice of {generation}; there are "
        f"{', '.join('x'.join(map(str, other)) for other in usual)}"
        f"{' and more in rising multiples of 4' if generation in _LARGEST else ''}; "
        f"the nearest is {Topology(generation, closest).name}"
    )


def _shape_of_count(name: str, generation: str, count: int) -> tuple[int, ...]:
    by_count = {math.prod(shape) * _CORES_A_CHIP[generation]: shape for shape in SLICES[generation]}
    if count in by_count:
        return by_count[count]
    closest = Topology(generation, by_count[min(by_count, key=lambda other: abs(other - count))])
    unit = "cores, two a chip" if _CORES_A_CHIP[generation] == 2 else "chips"
    raise UserError(
        f"topology: '{name}' is not a slice of {generation}; counted in {unit}, there are "
        f"{', '.join(map(str, by_count))}; the nearest is {closest.cloud_name} ({closest.name})"
    )
