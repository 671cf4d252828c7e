"""What a compiled program sends between devices, read from its optimised HLO text: how much, along which axes of the
mesh, and whether the schedule has other work for the meantime. Knows no model."""

import re
from dataclasses import dataclass
from typing import Literal

from jax.sharding import Mesh

from llama_jax.planning.compiled import hlo as hlo_text
from llama_jax.planning.compiled.device_groups import device_groups, in_mesh, span
from llama_jax.planning.compiled.hlo import Instruction, Module, Place

Phase = Literal["forward", "backward", "other"]


@dataclass(frozen=True)
class Collective:
    """One exchange between devices, as often as it is executed."""

    kind: str
    """`all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all`, `ragged-all-to-all`, `collective-permute` or
    `collective-broadcast`."""
    dtypes: tuple[str, ...]
    """Types of the arrays, each once: `bf16`, `f32`, …"""
    shape: str
    """The arrays as one device sees them in the result, such as `bf16[1,512,512]`."""
    bytes: int
    """Size of one execution: of the whole array that is gathered, reduced or scattered; of what one device holds for
    the other kinds."""
    group_size: int
    """Number of devices that exchange with each other (for `collective-permute`: that send)."""
    count: int
    """Executions in one run of the program."""
    where: str
    """`entry`, or the name of the innermost loop around it, such as `jit(step)/jvp(Llama)/while`."""
    phase: Phase
    """Pass it belongs to, as automatic differentiation names it; `other` is neither, or unknown."""
    name: str
    """The operation of the source it was made for, such as `jit(step)/…/q_proj/sharding_constraint`."""
    overlapped: bool = False
    """The schedule has other work between its start and its end. (Whether that work lasts long enough is not said.)"""
    axes: tuple[str, ...] = ()
    """Axes of the mesh along which the devices of a group lie; empty where no mesh was given."""
    slices: int = 1
    """Number of TPU slices that a group lies in, between which only the data-centre network is."""
    hosts: int = 1
    """Number of processes that a group lies in."""


def wire_bytes(collective: Collective) -> int:
    """Bytes that a device sends in all executions, by the algorithms that send least: (n-1)/n of the array to gather,
    scatter or exchange it among n devices, twice that to reduce it for all, the array itself to pass it on."""
    share = 1 - 1 / collective.group_size
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return round(collective.count * collective.bytes * factor.get(collective.kind, share))


def collectives(hlo: str, trip_count: int | None = None, mesh: Mesh | None = None) -> list[Collective]:
    """The collectives of an optimised program (`compiled.as_text()`), in the order in which it names them.

    Asynchronous ones count once: a start and its done are one, and so are the steps that TPU fuses into the
    computations between them, which share a channel. TPU's fused reduce-scatter, written as an all-reduce in a
    computation of its own, is a `reduce-scatter`. What TPU slices exchange by way of their hosts counts as what it
    does, an `all-reduce` for one. Of a conditional all branches are counted.

    Args:
        trip_count: turns of a loop of which the text does not tell (the layers, as a rule), see `hlo.loop_turns`.
        mesh: the mesh that the program was compiled for; partition i runs on the i-th of `mesh.devices.flat`.

    Raises:
        ValueError: a loop with collectives does not tell its trip count, and none was given.
    """
    module = hlo_text.parse(hlo)
    found: dict[object, Collective] = {}
    for place, computation, instruction in hlo_text.walk(module, module.entry, Place(), trip_count):
        if kind := _kind(instruction):
            key = key_of(instruction, place)
            if key not in found:
                found[key] = _collective(module, computation, instruction, kind, place, mesh)
    return list(found.values())


_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)(-start)?"
)
_BETWEEN_SLICES = "_xla_megascale_transfer_type"


def _kind(instruction: Instruction) -> str:
    """The kind of collective that an instruction starts; nothing where it starts none."""
    if match := _COLLECTIVE.fullmatch(instruction.opcode):
        return match[1]
    # The compiler for TPU takes apart what crosses slices: what is left is a send to the host and a recv from it.
    if instruction.opcode == "send":
        return instruction.attribute(_BETWEEN_SLICES + r'="(\w+)"').lower().replace("_", "-")
    return ""


def key_of(instruction: Instruction, place: Place) -> object:
    """Equal for the steps of one asynchronous collective that TPU fuses into several computations, else unique."""
    if '"async_collective_fusion_config"' not in instruction.text:
        return object()
    channel = instruction.attribute(r"channel_id=(\d+)")
    # Collectives of shard_map all have channel 1; the chain tells those apart.
    chain = instruction.attribute(r'chain_id="(\d+)"')
    return place.loops, instruction.opcode, channel, chain


def _collective(
    module: Module, computation: str, instruction: Instruction, kind: str, place: Place, mesh: Mesh | None
) -> Collective:
    if place.count is None:
        raise ValueError(f"the loop {place.where} does not tell its trip count; pass trip_count")
    groups = device_groups(module, instruction)
    members = max(len(groups), 1) if kind == "collective-permute" else max(map(len, groups), default=1)
    arrays = _received(instruction)
    size = sum(array.bytes for array in arrays)
    if kind == "reduce-scatter":
        size *= members
    elif computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    op_name = instruction.op_name or place.op_name
    axes, slices, hosts = span(in_mesh(module, instruction, mesh), mesh) if mesh is not None else ((), 1, 1)
    return Collective(
        kind=kind,
        dtypes=tuple(dict.fromkeys(array.dtype for array in arrays)),
        shape=", ".join(map(str, arrays)),
        bytes=size,
        group_size=members,
        count=place.count,
        where=place.where,
        phase="backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else "other",
        name=op_name,
        overlapped=_is_overlapped(module, computation, instruction, place),
        axes=axes,
        slices=slices,
        hosts=hosts,
    )


def _received(instruction: Instruction) -> list[hlo_text.Array]:
    """The arrays of the result, without operands that stand beside it."""
    arrays = instruction.arrays
    if instruction.opcode in ("all-gather-start", "reduce-scatter-start", "all-to-all-start"):
        return arrays[len(arrays) // 2 :]  # operands, then as many results
    if instruction.opcode == "collective-permute-start":
        return arrays[1:2]  # operand, result, and scalars for synchronisation
    return arrays[:1] if instruction.opcode == "send" else arrays  # operand, scalar, token


_WORK = ("fusion", "custom-call", "convolution", "dot", "while", "call", "conditional", "sort")
"""Instructions that take time. (Kinds of fusion that take none are so few that they do not matter.)"""


def _is_overlapped(module: Module, computation: str, instruction: Instruction, place: Place) -> bool:
    if '"async_collective_fusion_config"' in instruction.text:
        return True
    if '"is_sync":true' in instruction.text:
        return False
    wrappers = (caller for caller in place.callers if caller[1].opcode == "async-start")
    computation, start = next(wrappers, (computation, instruction))
    schedule = module.computations[computation]
    if start.opcode == "send":
        meeting = start.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"')
        answers = (each for each in schedule if each.opcode == "recv" and f'rendezvous="{meeting}"' in each.text)
        start = next(answers, start)
    elif not start.opcode.endswith("-start"):
        return False
    waiting, started = start.name, False
    for each in schedule:
        if each is start:
            started = True
        elif started and waiting in each.operands:
            if each.opcode.endswith("-done"):
                return False
            waiting = each.name
        elif started and each.opcode in _WORK:
            return True
    return False
