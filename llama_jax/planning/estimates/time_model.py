"""An estimate of the time of a training step from published figures, to tell layouts apart. Nothing here was measured:
every product is taken to run at the chip's peak and every exchange at the full speed of its links, so the sum is a
bound that no run reaches, of use only beside another one."""

from dataclasses import dataclass, replace

from llama_jax.core.chips import Chip
from llama_jax.model import paths
from llama_jax.planning.estimates.layout import StepPlan
from llama_jax.planning.hardware import Topology


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    compute: float
    """Products, those that the backward pass makes again included."""
    gathers: float
    """Weights gathered for use, while the layer before computes."""
    reductions: float
    """Gradients reduced and scattered. Waited for, as in what libtpu 0.0.42 schedules."""
    tensor: float
    """Sums over the devices that split heads and MLP. Waited for."""
    sequence: float
    """Keys and values of whole rows exchanged, and their gradients. Waited for."""

    @property
    def total(self) -> float:
        return max(self.compute, self.gathers) + self.reductions + self.tensor + self.sequence


def step_time(plan: StepPlan, chip: Chip, topology: Topology) -> StepTime:
    """The estimate for one step on devices of that kind."""
    mesh, micro = plan.mesh, plan.training.microbatches
    model = plan.model
    activations = plan.tokens * model.width * plan.compute_bytes
    again = 1 if plan.compute.remat in ("full", "attention") else 0
    # After attention and after the MLP in either pass; made again is the first alone.
    sums = model.num_layers * (4 + again)
    over_tensor = _Group(mesh.tensor, 1, topology, chip)
    keys = plan.rows * plan.sequence_length * 2 * model.num_kv_heads * model.head_size // mesh.tensor
    # Gathered in the forward pass and once more with what is made again; their gradients go back the same way.
    exchanges = model.num_layers * (2 + (plan.compute.remat == "full"))
    over_sequence = _Group(mesh.sequence, mesh.tensor, topology, chip)
    return StepTime(
        compute=flops(plan) / plan.num_devices / chip.flops,
        gathers=micro * _gather_seconds(plan, chip, topology),
        reductions=micro * _reduce_seconds(plan, chip, topology),
        tensor=micro * sums * 2 * over_tensor.seconds(activations),
        sequence=micro * exchanges * over_sequence.seconds(keys * plan.compute_bytes),
    )


_ATTENTION_PRODUCTS = {"xla": (4, 8), "blocked": (2, 6), "splash": (2, 7), "triton": (2, 5), "cudnn": (2, 5)}
"""Products of queries with the keys of their row, forward and backward, in halves of the full square (causality leaves
one half): `xla` makes all of it; the others make scores again in the backward pass, splash for each of its two
kernels."""


def flops(plan: StepPlan) -> int:
    """FLOPs of a step of the whole batch as it is executed, recomputation included."""
    model, remat = plan.model, plan.compute.remat
    found = plan.parameters
    table = 0 if model.table_is_head else found[paths.TABLE].size
    matrices = {path: p for path, p in found.items() if len(p.shape) > 1 and not path.endswith(("scale", "magnitude"))}
    products = sum(p.size for p in matrices.values()) - table
    of_weights = sum(p.size for path, p in matrices.items() if p.trains) - (table if found[paths.TABLE].trains else 0)
    forward, backward = _ATTENTION_PRODUCTS[attention_kind(plan)]
    again = 0
    if remat in ("full", "attention"):
        # What `down_proj` makes is the input of the next layer, which is kept.
        again = sum(p.size for path, p in matrices.items() if paths.in_layers(path) and "down_proj" not in path)
    mixing = model.num_layers * model.num_heads * model.head_size * plan.sequence_length
    mixing *= forward + backward + (forward if remat == "full" else 0)
    per_token = 2 * (2 * products + of_weights + again) + mixing
    return per_token * plan.training.batch_size * plan.sequence_length


def attention_kind(plan: StepPlan) -> str:
    """The implementation of attention; `auto` is taken for the kernel of a TPU, where rows have whole blocks for it."""
    if plan.compute.attention != "auto":
        return plan.compute.attention
    return "splash" if plan.sequence_length % 128 == 0 else "xla"


def _gather_seconds(plan: StepPlan, chip: Chip, topology: Topology) -> float:
    """Of one microbatch: the layers' weights once in each pass, the head once."""
    group = _Group(plan.weight_parts, plan.mesh.tensor, topology, chip)
    total = 0.0
    for path, parameter in plan.parameters.items():
        if "embed" not in parameter.axes or (path == paths.TABLE and not plan.model.table_is_head):
            continue
        # Codes travel as they are stored, anything else in the type of the products.
        width = parameter.stored if parameter.stored < 2 else plan.compute_bytes
        full = parameter.held(plan.mesh) * plan.weight_parts * width
        total += group.seconds(full) * (2 if paths.in_layers(path) else 1)
    return total


def _reduce_seconds(plan: StepPlan, chip: Chip, topology: Topology) -> float:
    """Of one microbatch: gradients scattered among the devices that share a weight, then summed over the others."""
    mesh = plan.mesh
    group = _Group(plan.weight_parts, plan.mesh.tensor, topology, chip)
    others = _Group(mesh.data // topology.num_slices, plan.weight_parts * mesh.tensor, topology, chip)
    slices = topology.num_slices
    total = 0.0
    for parameter in plan.parameters.values():
        if not parameter.trains or "embed" not in parameter.axes:
            continue
        shard = parameter.held(mesh) * plan.compute_bytes
        if mesh.fsdp_stages:
            total += replace(group, one_dimension=True).seconds(shard * group.size)
        else:
            # Over several dimensions of a torus libtpu sums for all at once, over all links, instead of scattering.
            total += group.seconds(shard * group.size) * (2 if group.dimensions > 1 else 1)
        total += 2 * others.seconds(shard)
        if slices > 1:
            assert chip.network_bandwidth is not None
            total += 2 * shard / others.size * (1 - 1 / slices) / chip.network_bandwidth
    return total


@dataclass(frozen=True)
class _Group:
    """Devices that exchange with each other along mesh axes, within a slice."""

    size: int
    inner: int
    """Devices along the axes within, which are nearer to each other."""
    topology: Topology
    chip: Chip
    one_dimension: bool = False
    """Take the links of one torus dimension after the other."""

    @property
    def dimensions(self) -> int:
        """Torus dimensions that the group reaches over; 1 for GPUs."""
        if self.chip.platform == "gpu":
            return 1
        reached, count = 1, 0
        for size in sorted(self.topology.shape, reverse=True):
            if reached < self.size:
                reached, count = reached * size, count + 1
        return max(count, 1)

    @property
    def bandwidth(self) -> float:
        """Bytes/s that a device of the group takes in."""
        chip = self.chip
        if chip.platform == "tpu":
            assert chip.link_bandwidth is not None
            return 2 * chip.link_bandwidth * (1 if self.one_dimension else self.dimensions)
        assert chip.nvlink_bandwidth is not None and chip.network_bandwidth is not None
        gpus = self.topology.shape[1]
        if self.size * self.inner <= gpus:
            return chip.nvlink_bandwidth
        # What comes from other hosts comes through the adapters of all members on this one, and is passed on.
        return min(chip.nvlink_bandwidth, max(gpus // self.inner, 1) * chip.network_bandwidth)

    def seconds(self, array_bytes: int | float) -> float:
        """To gather an array, or to sum it and scatter the sum; half of the time to sum it for all."""
        return array_bytes * (1 - 1 / self.size) / self.bandwidth
