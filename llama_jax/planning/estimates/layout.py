"""A training step as plain numbers: what it keeps, how it is split among devices, and how much each one works on.
Builds and traces nothing, so that hundreds of layouts can be looked at."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from llama_jax.core import tree
from llama_jax.core.config import MESH_AXES, MeshConfig
from llama_jax.core.sharding import TABLE
from llama_jax.model import lora, paths
from llama_jax.model.config import AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.quantized import BLOCK, StorageType
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class StepPlan:
    """What decides the memory and the time of a training step."""

    model: LlamaConfig
    compute: ComputeConfig
    training: TrainingConfig
    sequence_length: int
    mesh: MeshConfig
    """Every axis with its size; none is -1, see `resolved`."""
    adapter: AdapterConfig | None = None
    """None: the parameters that `training.trainable` selects train. Else an adapter and its modules to save."""
    base: StorageType = "float32"
    """How the base below an adapter is stored."""

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


Shape: TypeAlias = tuple[tuple[int, ...], tuple[str | None, ...]]
"""Sizes and logical axes."""

_KERNEL_AXES = {
    "attention/q_proj": ("embed", "heads"),
    "attention/k_proj": ("embed", "kv_heads"),
    "attention/v_proj": ("embed", "kv_heads"),
    "attention/o_proj": ("heads", "embed"),
    "mlp/gate_proj": ("embed", "mlp"),
    "mlp/up_proj": ("embed", "mlp"),
    "mlp/down_proj": ("mlp", "embed"),
}


def parameters(plan: StepPlan) -> Mapping[str, Parameter]:
    """The parameters by path, an adapter's included."""
    return _parameters(plan.model, plan.training.trainable, plan.adapter, plan.base)


@functools.lru_cache(maxsize=64)  # a search asks for the same ones hundreds of times
def _parameters(
    model: LlamaConfig, trainable: str | None, adapter: AdapterConfig | None, base: StorageType
) -> Mapping[str, Parameter]:
    shapes = _shapes(model)
    if adapter is None:
        return {
            path: Parameter(shape, axes, 4.0, trainable is None or re.search(trainable, path) is not None)
            for path, (shape, axes) in shapes.items()
        }
    trains = lora.is_trainable(adapter)
    found = {
        path: Parameter(shape, axes, 4.0 if trains(path) else _stored(base, path, shape), trains(path))
        for path, (shape, axes) in shapes.items()
    }
    return found | _factors(adapter, found)


def _shapes(model: LlamaConfig) -> dict[str, Shape]:
    sizes = {
        "embed": model.width,
        "heads": model.num_heads * model.head_size,
        "kv_heads": model.num_kv_heads * model.head_size,
        "mlp": model.mlp_width,
        "vocab": model.padded_vocab_size,
    }
    depth = model.num_layers
    shapes: dict[str, Shape] = {
        paths.TABLE: ((sizes["vocab"], sizes["embed"]), ("vocab", "embed")),
        "final_norm/scale": ((sizes["embed"],), ("norm",)),
        paths.of_layers("attention_norm/scale"): ((depth, sizes["embed"]), ("layers", "norm")),
        paths.of_layers("mlp_norm/scale"): ((depth, sizes["embed"]), ("layers", "norm")),
    }
    if not model.tie_embeddings:
        shapes[paths.HEAD] = (sizes["embed"], sizes["vocab"]), ("embed", "vocab")
    for module, (inputs, outputs) in _KERNEL_AXES.items():
        shapes[paths.kernel_of(paths.of_layers(module))] = (
            (depth, sizes[inputs], sizes[outputs]),
            ("layers", inputs, outputs),
        )
    return shapes


def _stored(base: StorageType, path: str, shape: tuple[int, ...]) -> float:
    """Bytes an element of a base."""
    if base == "float32":
        return 4.0
    if base == "bfloat16" or paths.split_kernel(path) is None:
        return 2.0
    # A scale in float32 for each output, or of one byte for each block (what those scales have in common is little).
    return 1 + 4 / shape[1] if base == "int8" else 0.5 + 1 / BLOCK


def _factors(adapter: AdapterConfig, base: Mapping[str, Parameter]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    trains = lora.is_trainable(adapter)
    # Their paths are all that is asked of the parameters.
    for module in lora.target_paths(adapter, tree.unflatten(dict(base))):
        kernel = base[paths.kernel_of(module)]
        (depth, inputs, outputs), (_, in_axis, out_axis) = kernel.shape, kernel.axes
        leaves: dict[str, Shape] = {
            "a": ((depth, inputs, adapter.rank), ("layers", in_axis, "rank")),
            "b": ((depth, adapter.rank, outputs), ("layers", "rank", out_axis)),
            "scale": ((depth,), ("layers",)),
        }
        if adapter.dora:
            leaves["magnitude"] = (depth, outputs), ("layers", None)
        for name, (shape, axes) in leaves.items():
            path = paths.of_adapter(f"{module}/{name}")
            found[path] = Parameter(shape, axes, 4.0, trains(path))
    return found
