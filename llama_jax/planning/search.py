"""Other ways to run a step: which layouts there are, ranked by an estimate of their time, and what to change about one
that does not fit. All figures are estimates (`memory_model`, `time_model`): what is chosen has yet to be compiled."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_args

from llama_jax.core.chips import Chip
from llama_jax.core.config import MeshConfig
from llama_jax.model.quantized import StorageType
from llama_jax.planning.estimates.layout import StepPlan, parts, stored_as
from llama_jax.planning.estimates.memory_model import MemoryEstimate, memory_estimate
from llama_jax.planning.estimates.time_model import StepTime, step_time
from llama_jax.planning.hardware import Topology
from llama_jax.training.program import indivisible

REMAT = ("none", "dots", "attention", "full")
"""Policies from the one that keeps most to the one that recomputes most."""
STORAGE: tuple[StorageType, ...] = get_args(StorageType)
"""Types of a base from the largest to the smallest."""


@dataclass(frozen=True)
class Candidate:
    """One way to run the step, estimated."""

    plan: StepPlan
    memory: MemoryEstimate
    time: StepTime
    fits: bool

    @property
    def options(self) -> str:
        """What to type for it."""
        mesh = self.plan.mesh
        return (
            f"--compute.remat {self.plan.compute.remat} --training.microbatches {self.plan.training.microbatches} "
            f"{_mesh_options(mesh)} --mesh.sequence {mesh.sequence} --mesh.tensor {mesh.tensor}"
        )


def candidates(plan: StepPlan, topology: Topology, chip: Chip, sequence: bool = False) -> list[Candidate]:
    """All remat policies, microbatches and meshes that the model, the batch and the hardware allow, those that fit
    first, then by time, then by memory.

    Args:
        sequence: also split rows; else they are split as in the plan.
    """
    found = []
    for mesh in _meshes(plan, topology, sequence):
        for count in _microbatches(plan, mesh):
            for remat in REMAT:
                changed = _with_remat(_with_microbatches(replace(plan, mesh=mesh), count), remat)
                memory, time = memory_estimate(changed), step_time(changed, chip, topology)
                found.append(Candidate(changed, memory, time, memory.total <= usable_bytes(chip)))
    # The options last, so that the order never depends on anything else.
    return sorted(found, key=lambda each: (not each.fits, each.time.total, each.memory.total, each.options))


def usable_bytes(chip: Chip) -> int:
    """Memory that a program can have."""
    return chip.memory_bytes if chip.usable_bytes is None else chip.usable_bytes


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _meshes(plan: StepPlan, topology: Topology, sequence: bool) -> Iterator[MeshConfig]:
    total = topology.num_devices
    splits = _divisors(total) if sequence else [plan.mesh.sequence]
    for tensor, split in itertools.product(_divisors(total), splits):
        if total % (tensor * split):
            continue
        for fsdp in _divisors(total // tensor // split):
            sizes = {"data": total // tensor // split // fsdp, "fsdp": fsdp, "sequence": split, "tensor": tensor}
            # The torus dimensions of the plan's own mesh say nothing about another one.
            stages = plan.mesh.fsdp_stages if fsdp == plan.mesh.fsdp else ()
            mesh = MeshConfig(**sizes, fsdp_stages=stages)
            if is_possible(replace(plan, mesh=mesh), topology):
                yield mesh


def is_possible(plan: StepPlan, topology: Topology) -> bool:
    """Whether the mesh divides what it splits, slices lie along `data`, and `tensor` stays within one host's GPUs."""
    mesh, length = plan.mesh, plan.sequence_length
    return (
        plan.num_devices == topology.num_devices
        and mesh.data % topology.num_slices == 0
        and (topology.platform == "tpu" or mesh.tensor <= topology.shape[1])
        # Each device of those that share a row takes one piece from its first half and one from its second.
        and (mesh.sequence == 1 or length % (2 * mesh.sequence) == 0)
        and not indivisible(plan.model, plan.training, length, lambda axis: parts(axis, mesh))
        and all(parameter.is_divisible(mesh) for parameter in plan.parameters.values())
    )


def _microbatches(plan: StepPlan, mesh: MeshConfig) -> list[int]:
    """Counts that leave each device whole rows, in every stage of the batch."""
    by_device = [rows // (mesh.data * mesh.fsdp) for _, rows in plan.training.stages]
    return _divisors(math.gcd(*by_device))


def _with_remat(plan: StepPlan, remat: Any) -> StepPlan:
    return replace(plan, compute=replace(plan.compute, remat=remat))


def _with_microbatches(plan: StepPlan, count: int) -> StepPlan:
    return replace(plan, training=replace(plan.training, microbatches=count))


def _mesh_options(mesh: MeshConfig) -> str:
    return f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp}"


@dataclass(frozen=True)
class Remedy:
    """What would make a step fit, estimated."""

    options: str
    """What to type in addition."""
    plan: StepPlan
    topology: Topology
    memory_bytes: int
    """Of one device."""
    seconds: float
    """Of a step."""
    cost: float
    """Device-seconds a token, relative to those of the step that does not fit."""


Change: TypeAlias = tuple[str, StepPlan, Topology]
"""What to type, and what comes of it."""


def remedies(plan: StepPlan, topology: Topology, chip: Chip, needed_bytes: int | None = None) -> list[Remedy]:
    """The three cheapest changes, each of another kind, that would make the step fit, by device-seconds a token. Where
    fewer than three single ones would, changes of two kinds at once are among them.

    Kinds: a kernel for attention, a remat policy that keeps less, more microbatches, devices of `mesh.data` moved to
    `mesh.fsdp`, a smaller type for the base of an adapter, larger slices, fewer rows.

    Args:
        needed_bytes: what the compiler said the step needs. Where it is more than estimated, all estimates are scaled
            by as much.
    """
    scale = max(1.0, (needed_bytes or 0) / memory_estimate(plan).total)
    before = _cost(plan, topology, chip)

    def remedy(change: Change) -> Remedy:
        options, changed, hardware = change
        memory = round(memory_estimate(changed).total * scale)
        seconds = step_time(changed, chip, hardware).total
        return Remedy(options, changed, hardware, memory, seconds, _cost(changed, hardware, chip) / before)

    def cheapest(changes: Iterable[Change]) -> list[Remedy]:
        fitting = [found for found in map(remedy, changes) if found.memory_bytes <= usable_bytes(chip)]
        return sorted(fitting, key=_by_cost)[:1]

    # Sorting is stable: at the same cost the smaller change and the order of `KINDS` decide.
    singles = [found for kind in KINDS for found in cheapest(kind(plan, topology))]
    pairs: list[Remedy] = []
    if len(singles) < 3:
        for first, second in itertools.combinations(KINDS, 2):
            pairs += cheapest(_both(first, second, plan, topology))
    return sorted([*singles, *pairs], key=_by_cost)[:3]


def _by_cost(remedy: Remedy) -> float:
    return round(remedy.cost, 3)


def _cost(plan: StepPlan, topology: Topology, chip: Chip) -> float:
    tokens = plan.training.batch_size * plan.sequence_length
    return step_time(plan, chip, topology).total * topology.num_devices / tokens


Kind: TypeAlias = Callable[[StepPlan, Topology], Iterator[Change]]
"""Makes the changes of one kind, smaller ones first."""


def _both(first: Kind, second: Kind, plan: StepPlan, topology: Topology) -> Iterator[Change]:
    for options, changed, hardware in first(plan, topology):
        for more, both, other in second(changed, hardware):
            yield f"{options} {more}", both, other


def _less_kept(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    for remat in REMAT[REMAT.index(plan.compute.remat) + 1 :]:
        yield f"--compute.remat {remat}", _with_remat(plan, remat), topology


def _more_microbatches(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    for count in _microbatches(plan, plan.mesh):
        if count > plan.training.microbatches:
            yield f"--training.microbatches {count}", _with_microbatches(plan, count), topology


def _attention_kernel(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    if plan.compute.attention == "xla":
        yield "--compute.attention auto", replace(plan, compute=replace(plan.compute, attention="auto")), topology


def _more_fsdp(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    for factor in _divisors(plan.mesh.data)[1:]:
        mesh = replace(plan.mesh, data=plan.mesh.data // factor, fsdp=plan.mesh.fsdp * factor, fsdp_stages=())
        changed = replace(plan, mesh=mesh)
        if is_possible(changed, topology):
            yield _mesh_options(mesh), changed, topology


def _smaller_base(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    if plan.base is not None:
        for base in STORAGE[STORAGE.index(plan.base) + 1 :]:
            changed = replace(plan, base=base, parameters=stored_as(plan.parameters, base))
            yield f"--model_dtype {base}", changed, topology


def _fewer_rows(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    if plan.training.batch_ramp:
        return
    for rows in reversed(_divisors(plan.training.batch_size)[:-1]):
        if rows % plan.training.microbatches == 0:
            changed = replace(plan, training=replace(plan.training, batch_size=rows))
            if is_possible(changed, topology):
                yield f"--training.batch_size {rows}", changed, topology


def _larger_slice(plan: StepPlan, topology: Topology) -> Iterator[Change]:
    for larger in topology.larger():
        fsdp = plan.mesh.fsdp * larger.num_devices // topology.num_devices
        mesh = replace(plan.mesh, fsdp=fsdp, fsdp_stages=())
        changed = replace(plan, mesh=mesh)
        if is_possible(changed, larger):
            yield f"--topology {larger.name} {_mesh_options(mesh)}", changed, larger


KINDS: tuple[Kind, ...] = (
    _attention_kernel,
    _less_kept,
    _more_microbatches,
    _more_fsdp,
    _smaller_base,
    _larger_slice,
    _fewer_rows,
)
"""Those first that change least about the training and what it costs."""
