"""An estimate of the bytes that a compiled program moves to and from the memory of a device, from its optimised HLO
text. It knows what each instruction takes and gives, and not what caches or kernels do with it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from llama_jax.planning.compiled import hlo as hlo_text
from llama_jax.planning.compiled.collectives import key_of
from llama_jax.planning.compiled.hlo import Array, Instruction, Module, Place

_MOVES_NOTHING = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("partition-id", "replica-id"),
)
_MARKS = ("AllocateBuffer", "AsyncCollectiveStart", "AsyncCollectiveDone", "SliceId", "AssumeGatherIndicesInBound")
"""Custom calls that tell the compiler something and move nothing."""
_SLICES = ("slice", "dynamic-slice", "gather")
_TAKES_ALL = (
    *("reduce", "reduce-window", "select-and-scatter", "dot", "convolution", "custom-call", "sort", "map"),
    *("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"),
    *("fft", "cholesky", "triangular-solve"),
)
"""Instructions that read all of their operands for any part of their result."""


def memory_traffic(hlo: str, trip_count: int | None = None) -> int:
    """Bytes read and written by one device in one run of the program. An estimate.

    Each instruction reads its operands and writes its result, those in a loop as often as it turns. A fusion is one
    instruction. Of an array from which a slice is taken, or into which one is put, the slice counts. An asynchronous
    copy or collective counts once. Arrays in other memory than the device's (on the chip, or the host's) do not count,
    and of a conditional the branch that moves most does.

    Too little by what kernels (custom calls) read more than once and by the padding of tiled layouts, too much by what
    caches keep from one instruction to the next.

    Args:
        trip_count: turns of a loop of which the text does not tell, see `hlo.loop_turns`.

    Raises:
        ValueError: a loop does not tell its trip count, and none was given.
    """
    module = hlo_text.parse(hlo)
    return _Traffic(module, trip_count).of_computation(module.entry, Place())


@dataclass
class _Traffic:
    module: Module
    trip_count: int | None
    counted: set[object] = field(default_factory=set)
    """Asynchronous collectives of which a step was met."""

    def of_computation(self, name: str, place: Place) -> int:
        instructions = self.module.computations.get(name, [])
        by_name = {each.name: each for each in instructions}
        return sum(self.of_instruction(each, by_name, place) for each in instructions)

    def of_instruction(self, instruction: Instruction, by_name: dict[str, Instruction], place: Place) -> int:
        """Bytes of one execution, of a loop with all its turns."""
        opcode, results = instruction.opcode, instruction.arrays
        if opcode == "while":
            turns = hlo_text.loop_turns(self.module, instruction, self.trip_count)
            if turns is None:
                raise ValueError(f"the loop {instruction.op_name or instruction.name} does not tell its trip count")
            inside = Place(loops=(*place.loops, instruction.name))
            return turns * self.of_computation(instruction.body, inside)
        if opcode in ("call", "async-start"):
            return sum(self.of_computation(called, place) for called in instruction.called)
        if opcode == "conditional":
            return max((self.of_computation(called, place) for called in instruction.called), default=0)
        if opcode in _MOVES_NOTHING or opcode.endswith(("-done", "-update")) or _is_mark(instruction):
            return 0
        operands = [by_name[name].arrays for name in instruction.operands if name in by_name]
        if opcode == "fusion":
            return self.of_fusion(instruction, results, operands, place)
        if opcode == "fusion-start":  # the operands, the results, a scalar
            return self.of_fusion(instruction, results[sum(map(len, operands)) : -1], operands, place)
        if opcode == "copy-start":  # the copy, the original, a scalar
            return _in_memory(results[:1]) + _in_memory(operands[0])
        if opcode in ("slice-start", "dynamic-slice-start"):  # the original, the slice, a scalar
            return _in_memory(results[1:2]) + _part(operands[0], results[1].size)
        if opcode in ("send", "recv"):  # the array, scalars
            return _in_memory(results[:1])
        if opcode.endswith("-start") and len(results) > sum(map(len, operands)):  # operands, then results
            return _in_memory(results[len(results) // 2 :]) + sum(map(_in_memory, operands))
        if opcode in _SLICES:
            return _in_memory(results) + _part(operands[0], results[0].size) + sum(map(_in_memory, operands[1:]))
        if opcode == "dynamic-update-slice":
            return _in_memory(operands[1]) + _part(results, operands[1][0].size)
        if opcode == "scatter":  # what is added to is read and written again
            return sum(map(_in_memory, operands[1:])) + 2 * _part(results, operands[-1][0].size)
        return _in_memory(results) + sum(map(_in_memory, operands))

    def of_fusion(
        self, fusion: Instruction, made: Sequence[Array], operands: Sequence[list[Array]], place: Place
    ) -> int:
        """What a fusion reads of its operands and writes of what is made; and what a collective moves whose first step
        it is."""
        instructions = self.module.computations[fusion.called[0]]
        by_name = {each.name: each for each in instructions}
        total = 0
        for each in instructions:
            if _is_step(each) and (key := key_of(each, place)) not in self.counted:
                self.counted.add(key)
                total += _in_memory(each.arrays) + sum(_in_memory(by_name[name].arrays) for name in each.operands)
        for arrays, needed in zip(operands, needed_elements(self.module, fusion.called[0]), strict=True):
            total += _part(arrays, needed)
        roots = _roots(instructions, by_name)
        # Where a result lies is what the fusion says: a computation of only one does not always repeat it.
        results = iter(made)
        for root in roots:  # which may make several arrays, as a reduction of several does
            written = list(results if len(roots) == 1 else itertools.islice(results, len(root.arrays)))
            total += _part(written, _written(root, by_name))
        return total


def needed_elements(module: Module, fusion: str, nested: bool = False) -> list[int]:
    """Elements of each parameter of a fused computation that its results are made of. What it hands on as it is, is not
    read; in a fusion nested in another it is."""
    instructions = module.computations[fusion]
    by_name = {each.name: each for each in instructions}
    roots = _roots(instructions, by_name)
    in_place = {_made(root, by_name).name for root in roots}
    needed = dict.fromkeys(by_name, 0)
    for root in roots:
        handed_on = _made(root, by_name).opcode == "parameter" and not nested
        needed[root.name] = 0 if handed_on else _size(root)
    for each in reversed(instructions):
        if not needed[each.name] or _is_step(each) or _is_mark(each):
            continue
        inner = needed_elements(module, each.called[0], nested=True) if each.opcode == "fusion" else []
        for index, operand in enumerate(each.operands):
            if operand not in by_name:
                continue
            size = _size(by_name[operand])
            wanted = size
            if each.opcode == "fusion":
                wanted = inner[index]
            elif each.opcode in ("dynamic-update-slice", "scatter") and index == 0:
                wanted = 0 if each.name in in_place else size
            elif index == 0 if each.opcode in _SLICES else each.opcode not in (*_TAKES_ALL, "dynamic-update-slice"):
                wanted = needed[each.name]
            needed[operand] = min(size, needed[operand] + wanted)
    parameters = [each for each in instructions if each.opcode == "parameter"]
    return [needed[each.name] for each in sorted(parameters, key=lambda each: int(each.text.split(")")[0]))]


def _roots(instructions: Sequence[Instruction], by_name: dict[str, Instruction]) -> list[Instruction]:
    """The instructions that make the results of a computation: the last one, or the elements of that tuple."""
    root = instructions[-1]
    return [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _made(instruction: Instruction, by_name: dict[str, Instruction]) -> Instruction:
    """What a chain of mere views begins with."""
    while instruction.opcode in ("bitcast", "get-tuple-element") and instruction.operands[0] in by_name:
        instruction = by_name[instruction.operands[0]]
    return instruction


def _written(root: Instruction, by_name: dict[str, Instruction]) -> int:
    """Elements that a fusion writes of one of its results."""
    made = _made(root, by_name)
    if made.opcode == "parameter" or _is_step(made) or _is_mark(made):
        return 0
    if made.opcode in ("dynamic-update-slice", "scatter"):
        return _size(by_name[made.operands[1 if made.opcode == "dynamic-update-slice" else -1]])
    return _size(root)


def _is_step(instruction: Instruction) -> bool:
    """One of the steps that TPU makes of an asynchronous collective."""
    return '"async_collective_fusion_config"' in instruction.text


def _is_mark(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and instruction.attribute(r'custom_call_target="(\w+)"') in _MARKS


def _size(instruction: Instruction) -> int:
    return sum(array.size for array in instruction.arrays)


def _in_memory(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.memory_space)


def _part(arrays: Sequence[Array], elements: int) -> int:
    """Bytes of so many elements of the arrays, as far as these are in the memory of the device."""
    size = sum(array.size for array in arrays)
    return _in_memory(arrays) * min(elements, size) // size if size else 0
