"""What a compiled program sends between devices, read from its optimised HLO text. Knows the text forms of XLA for
TPU, GPU and CPU; knows no model."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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


def wire_bytes(collective: Collective) -> int:
    """Bytes that a device sends in all executions, by the algorithms that send least: (n-1)/n of the array to gather,
    scatter or exchange it among n devices, twice that to reduce it for all, the array itself to pass it on."""
    share = 1 - 1 / collective.group_size
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return round(collective.count * collective.bytes * factor.get(collective.kind, share))


def table(collectives: Sequence[Collective]) -> str:
    """Collectives for people: those alike in kind, type, place, phase and group size on one line, with the number of
    executions, the MiB of their arrays and the MiB that a device sends."""
    header = ("kind", "type", "where", "phase", "devices", "count", "MiB", "wire MiB")
    alike: dict[tuple[str, ...], list[Collective]] = {}
    for collective in collectives:
        key = (collective.kind, "+".join(collective.dtypes), collective.where, collective.phase)
        alike.setdefault((*key, str(collective.group_size)), []).append(collective)
    rows = [header, *((*key, *_totals(members)) for key, members in sorted(alike.items()))]
    rows.append(("total", "", "", "", "", *_totals(collectives)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = sum(1 for title in header if title in ("kind", "type", "where", "phase"))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _totals(collectives: Sequence[Collective]) -> tuple[str, str, str]:
    size = sum(each.count * each.bytes for each in collectives)
    wire = sum(map(wire_bytes, collectives))
    return str(sum(each.count for each in collectives)), f"{size / 2**20:,.3f}", f"{wire / 2**20:,.3f}"


def collectives(hlo: str, trip_count: int | None = None) -> list[Collective]:
    """The collectives of an optimised program (`compiled.as_text()`), in the order in which it names them.

    Asynchronous ones count once: a start and its done are one, and so are the steps that TPU fuses into the
    computations between them, which share a channel. TPU's fused reduce-scatter, written as an all-reduce in a
    computation of its own, is a `reduce-scatter`. Of a conditional all branches are counted.

    Args:
        trip_count: turns of a loop of which the text does not tell (the layers, as a rule). Read from the text are
            XLA's `known_trip_count`, and conditions `counter < constant`, whose counter is taken to start at 0 and to
            go up by 1, as that of every `jax.lax.scan` does.

    Raises:
        ValueError: a loop with collectives does not tell its trip count, and none was given.
    """
    module = _parse(hlo)
    found: dict[object, Collective] = {}
    for key, collective in _walk(module, module.entry, _Place(1, "entry", "", ()), trip_count):
        found.setdefault(key, collective)
    return list(found.values())


@dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    """Type of the result."""
    opcode: str
    text: str
    """The line from the operands on."""

    def attribute(self, pattern: str) -> str:
        """The first group of the pattern in the text, or nothing."""
        match = re.search(pattern, self.text)
        return match[1] if match else ""

    @property
    def op_name(self) -> str:
        return self.attribute(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class _Module:
    computations: dict[str, list[_Instruction]]
    entry: str
    num_devices: int


@dataclass(frozen=True)
class _Place:
    """Where a computation is called from."""

    count: int | None
    """Executions; None: unknown."""
    where: str
    op_name: str
    """Name of the caller, for instructions that have none."""
    path: tuple[str, ...]
    """The loops around it, to tell apart what one body does when several loops share it."""


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)(-start)?"
)


def _parse(hlo: str) -> _Module:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if opening := _COMPUTATION.match(line):
            current = computations[opening[2]] = []
            entry = opening[2] if opening[1] else entry
        elif line.rstrip() == "}":  # exactly: the text of Pallas kernels has lines that begin with braces
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(_Instruction(*instruction.groups()))
    header = hlo[: hlo.find("\n")]
    counts = [int(count) for count in re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)]
    return _Module(computations, entry, math.prod(counts))


def _walk(
    module: _Module, computation: str, place: _Place, trip_count: int | None
) -> Iterator[tuple[object, Collective]]:
    """The collectives below a computation, each with a key that is equal for the parts of the same one."""
    for instruction in module.computations.get(computation, ()):
        op_name = instruction.op_name or place.op_name
        if collective := _COLLECTIVE.fullmatch(instruction.opcode):
            yield _key(instruction, place), _collective(module, computation, instruction, collective[1], place)
        elif instruction.opcode == "while":
            turns = _trip_count(module, instruction, trip_count)
            inside = _Place(
                count=None if turns is None or place.count is None else place.count * turns,
                where=instruction.op_name or f"{place.where}/{instruction.name}",
                op_name=op_name,
                path=(*place.path, instruction.name),
            )
            yield from _walk(module, instruction.attribute(r"body=%?([\w.\-]+)"), inside, trip_count)
        elif not instruction.opcode.endswith(("-update", "-done")):  # they name the computation of their start again
            inside = replace(place, op_name=op_name)
            for called in _called(instruction):
                yield from _walk(module, called, inside, trip_count)


def _called(instruction: _Instruction) -> list[str]:
    called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", instruction.text)
    for several in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", instruction.text):
        called += re.findall(r"[\w.\-]+", several)
    return called


def _key(instruction: _Instruction, place: _Place) -> object:
    if '"async_collective_fusion_config"' not in instruction.text:
        return object()
    channel = instruction.attribute(r"channel_id=(\d+)")
    # Collectives of shard_map all have channel 1; the chain tells those apart.
    chain = instruction.attribute(r'chain_id="(\d+)"')
    return place.path, instruction.opcode, channel, chain


def _collective(module: _Module, computation: str, instruction: _Instruction, kind: str, place: _Place) -> Collective:
    if place.count is None:
        raise ValueError(f"the loop {place.where} does not tell its trip count; pass trip_count")
    arrays = _ARRAY.findall(instruction.result)
    if instruction.opcode == "all-gather-start":
        arrays = arrays[len(arrays) // 2 :]  # operands, then results
    elif instruction.opcode == "collective-permute-start":
        arrays = arrays[1:2]  # operand, result, and scalars for synchronisation
    size = sum(map(_array_bytes, arrays))
    group_size = _group_size(module, instruction)
    if kind == "reduce-scatter":
        size *= group_size
    elif computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    op_name = instruction.op_name or place.op_name
    return Collective(
        kind=kind,
        dtypes=tuple(dict.fromkeys(dtype for dtype, _ in arrays)),
        shape=", ".join(f"{dtype}[{shape}]" for dtype, shape in arrays),
        bytes=size,
        group_size=group_size,
        count=place.count,
        where=place.where,
        phase=_phase(op_name),
        name=op_name,
    )


def _array_bytes(array: tuple[str, str]) -> int:
    dtype, shape = array
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8


def _phase(op_name: str) -> Phase:
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "other"


def _group_size(module: _Module, instruction: _Instruction) -> int:
    """Number of devices in a group, from any of the three ways to write groups."""
    if instruction.opcode.startswith("collective-permute"):
        pairs = instruction.attribute(r"source_target_pairs=\{(.*?\})\}")
        return max(pairs.count("{"), 1)
    # mesh['a'=2,'b'=4] {'b','a':(1)2}: along axis b, and along the first factor 2 of axis a
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", instruction.text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    # [groups,devices in each]<=[…]
    if iota := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]<="):
        return int(iota)
    listed = instruction.attribute(r"replica_groups=\{\{([\d,]*)\}")
    return len(listed.split(",")) if listed else module.num_devices


def _trip_count(module: _Module, loop: _Instruction, otherwise: int | None) -> int | None:
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = module.computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), [])
    constants = {
        each.name: int(each.text.split(")")[0])
        for each in condition
        if each.opcode == "constant" and each.result.startswith("s32[]")
    }
    for comparison in condition:
        if comparison.opcode == "compare" and "direction=LT" in comparison.text:
            operands = re.findall(r"[\w.\-]+", comparison.text.split(")")[0])
            return next((constants[name] for name in operands[1:] if name in constants), otherwise)
    return otherwise
