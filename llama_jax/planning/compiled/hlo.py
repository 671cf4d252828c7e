"""The text of an optimised program (`compiled.as_text()`) taken apart into instructions, with how often each is
executed. Knows the forms of XLA for TPU, GPU and CPU, and not what the instructions do."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Array:
    """Type of an array: `bf16[4,8]{1,0:T(8,128)S(1)}`."""

    dtype: str
    shape: tuple[int, ...]
    memory_space: int
    """0: the device's memory. On TPU 1 to 4 are on the chip and 5 is the host's."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Without the padding of tiled layouts."""
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return self.size * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = result opcode(operands), attributes`."""

    name: str
    result: str
    """Type of the result, as written."""
    opcode: str
    text: str
    """The line from the operands on."""

    def attribute(self, pattern: str) -> str:
        """The first group of the pattern in the text, or nothing."""
        match = re.search(pattern, self.text)
        return match[1] if match else ""

    @property
    def op_name(self) -> str:
        """The operation of the source it was made for, such as `jit(step)/…/q_proj/dot_general`; may be empty."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def arrays(self) -> list[Array]:
        """Arrays of the result, those in tuples one after the other."""
        return [
            Array(dtype, tuple(map(int, filter(None, shape.split(",")))), int(space or 0))
            for dtype, shape, space in _ARRAY.findall(self.result)
        ]

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth = 1
        for position, character in enumerate(self.text):
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0:
                return re.findall(r"%([\w.\-]+)", self.text[:position])
        return []

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs, other than the condition and body of a loop."""
        called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", self.text)
        for several in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.text):
            called += re.findall(r"[\w.\-]+", several)
        return called

    @property
    def body(self) -> str:
        """Name of the computation that a loop repeats."""
        return self.attribute(r"body=%?([\w.\-]+)")


@dataclass(frozen=True)
class Module:
    """A program."""

    computations: dict[str, list[Instruction]]
    """By name; instructions in the order of the schedule, where there is one."""
    entry: str
    num_devices: int
    """Of one slice, where a TPU program runs on several."""


@dataclass(frozen=True)
class Place:
    """Where a computation is called from."""

    count: int | None = 1
    """Executions in one run of the program; None: unknown."""
    where: str = "entry"
    """`entry`, or the name of the innermost loop around it, such as `jit(step)/jvp(Llama)/while`."""
    op_name: str = ""
    """Name of the caller, for instructions that have none."""
    loops: tuple[str, ...] = ()
    """The loops around it, to tell apart what one body does when several loops share it."""
    callers: tuple[tuple[str, Instruction], ...] = field(default=(), repr=False)
    """Since the innermost loop: the computations and the instructions in them that call it, outermost first."""


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{[^{}]*?(?:S\((\d+)\))?\})?")


def parse(text: str) -> Module:
    """The program that the text describes."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if opening := _COMPUTATION.match(line):
            current = computations[opening[2]] = []
            entry = opening[2] if opening[1] else entry
        elif line.rstrip() == "}":  # exactly: the text of Pallas kernels has lines that begin with braces
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(Instruction(*instruction.groups()))
    header = text[: text.find("\n")]
    counts = [int(count) for count in re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)]
    return Module(computations, entry, math.prod(counts))


def walk(
    module: Module, computation: str, place: Place, trip_count: int | None
) -> Iterator[tuple[Place, str, Instruction]]:
    """Every instruction that a computation executes, with where it is and the name of its computation; of a
    conditional, those of all branches.

    Args:
        trip_count: turns of a loop of which the text does not tell.
    """
    for instruction in module.computations.get(computation, ()):
        yield place, computation, instruction
        op_name = instruction.op_name or place.op_name
        if instruction.opcode == "while":
            turns = loop_turns(module, instruction, trip_count)
            inside = Place(
                count=None if turns is None or place.count is None else place.count * turns,
                where=instruction.op_name or f"{place.where}/{instruction.name}",
                op_name=op_name,
                loops=(*place.loops, instruction.name),
            )
            yield from walk(module, instruction.body, inside, trip_count)
        elif not instruction.opcode.endswith(("-update", "-done")):  # they name the computation of their start again
            inside = replace(place, op_name=op_name, callers=(*place.callers, (computation, instruction)))
            for called in instruction.called:
                yield from walk(module, called, inside, trip_count)


def loop_turns(module: Module, loop: Instruction, otherwise: int | None = None) -> int | None:
    """How often the body of a loop is executed.

    Read from the text are XLA's `known_trip_count`, and conditions `counter < constant`, whose counter is taken to
    start at 0, as that of every `jax.lax.scan` does. What a turn adds to it is read from the body, and is 1 where that
    is not plain to see.

    Args:
        otherwise: the answer where the text does not tell.
    """
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = {each.name: each for each in module.computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), [])}
    for comparison in condition.values():
        if comparison.opcode == "compare" and "direction=LT" in comparison.text:
            counter, limit = (condition.get(name) for name in comparison.operands[:2])
            if (last := _constant(limit)) is None:
                return otherwise
            return -(-last // _added_a_turn(module, loop, "" if counter is None else counter.attribute(r"index=(\d+)")))
    return otherwise


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant" or not re.match(r"[su]32\[\]", instruction.result):
        return None
    return int(instruction.text.split(")")[0])


def _added_a_turn(module: Module, loop: Instruction, index: str) -> int:
    """What the body adds to the element of its tuple that counts the turns: 2 in loops that were unrolled once."""
    body = {each.name: each for each in module.computations.get(loop.body, [])}
    roots = [each for each in body.values() if each.opcode == "tuple"]
    if not index or not roots or int(index) >= len(roots[-1].operands):
        return 1
    after = body.get(roots[-1].operands[int(index)])
    if after is None or after.opcode != "add":
        return 1
    return next((step for name in after.operands if (step := _constant(body.get(name)))), 1)
