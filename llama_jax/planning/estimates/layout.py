"""A training step as plain numbers: what it keeps, how it is split among devices, and how much each one works on.
All but `parameters` builds and traces nothing, so that hundreds of layouts can be looked at."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax

from llama_jax.core import tree
from llama_jax.core.batches import Batch
from llama_jax.core.config import MESH_AXES, MeshConfig
from llama_jax.core.sharding import TABLE
from llama_jax.model import paths
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.quantized import BLOCK, StorageType, block_kernels, is_quantized, kernel_shape
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Partition


@dataclass(frozen=True)
class StepPlan:
    """What decides the memory and the time of a training step."""

    model: LlamaConfig
    compute: ComputeConfig
    training: TrainingConfig
    sequence_length: int
    mesh: MeshConfig
    """Every axis with its size; none is -1, see `resolved`."""
    batch: type[Batch]
    parameters: Mapping[str, "Parameter"]
    """By path, an adapter's included."""
    base: StorageType | None = None
    """How the parameters that do not train are stored, where the command can be told; else None."""
    platform: Literal["tpu", "gpu"] = "tpu"
    """What it runs on."""

    @property
    def num_devices(self) -> int:
        return math.prod(getattr(self.mesh, axis) for axis in MESH_AXES)

    @property
    def rows(self) -> int:
        """Rows of a microbatch that a device works on, or shares with those that split its length."""
        return self.training.batch_size // self.training.microbatches // (self.mesh.data * self.mesh.fsdp)

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch that a device holds."""
        return self.rows * self.sequence_length // self.mesh.sequence

    @property
    def weight_parts(self) -> int:
        """Devices that a weight is gathered from for use."""
        return parts("embed", self.mesh)

    @property
    def compute_bytes(self) -> int:
        """Bytes of an activation, and of a weight as it enters a product."""
        return {"float32": 4, "bfloat16": 2}[self.compute.dtype]


class Parameter(NamedTuple):
    """One array of the parameters."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axes."""
    stored: float
    """Bytes an element, as it is kept between steps."""
    trains: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def is_divisible(self, mesh: MeshConfig) -> bool:
        """Whether the mesh divides what it splits."""
        return not any(size % parts(axis, mesh) for size, axis in zip(self.shape, self.axes, strict=True))

    def held(self, mesh: MeshConfig) -> float:
        """Elements on one device."""
        return self.size / math.prod(parts(axis, mesh) for axis in self.axes)


def parts(axis: str | None, mesh: MeshConfig) -> int:
    """Number of parts that a logical axis is split into."""
    return 1 if axis is None else math.prod(getattr(mesh, name) for name in TABLE[axis])


def resolved(mesh: MeshConfig, num_devices: int) -> MeshConfig:
    """The mesh with its axis of -1 made what the others leave."""
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    left = num_devices // math.prod(size for size in sizes.values() if size != -1)
    return replace(mesh, **{axis: left for axis, size in sizes.items() if size == -1})


def parameters(partition: Partition) -> dict[str, Parameter]:
    """The parameters of a run by path; a quantised matrix is one of them, at the path of its kernel."""
    shapes = jax.eval_shape(lambda: partition.init(jax.random.key(0)))
    axes = tree.flatten(partition.axes)
    found = {}
    for path, leaf in tree.flatten(shapes).items():
        if not paths.is_quantized(path):
            found[path] = Parameter(leaf.shape, tuple(axes[path]), leaf.dtype.itemsize, partition.is_trainable(path))
    for path, kernel in block_kernels(shapes).items():
        if is_quantized(kernel):
            (codes,) = {"int8", "nf4"} & kernel.keys()
            shape = kernel_shape(kernel)
            stored = sum(part.size * part.dtype.itemsize for part in kernel.values()) / math.prod(shape)
            found[path] = Parameter(shape, tuple(axes[f"{path}/{codes}"]), stored, False)
    return found


def stored_as(parameters: Mapping[str, Parameter], base: StorageType) -> dict[str, Parameter]:
    """The same parameters with those that do not train stored in another type."""
    return {
        path: each if each.trains or paths.is_adapter(path) else each._replace(stored=_stored(base, path, each.shape))
        for path, each in parameters.items()
    }


def _stored(base: StorageType, path: str, shape: tuple[int, ...]) -> float:
    """Bytes an element of a base."""
    if base == "float32":
        return 4.0
    if base == "bfloat16" or not paths.split_kernel(path):
        return 2.0
    # A scale in float32 for each output, or of one byte for each block (what those scales have in common is little).
    return 1 + 4 / shape[1] if base == "int8" else 0.5 + 1 / BLOCK
