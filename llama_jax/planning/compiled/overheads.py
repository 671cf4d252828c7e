"""What a program compiled for a GPU does beside its products and what they need, in numbers that a plan tells and tests
hold to. Read from its optimised HLO text; knows no model, and nothing of what kernels do."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama_jax.planning.compiled import hlo as hlo_text
from llama_jax.planning.compiled.hlo import Array, Instruction, Module, Place


@dataclass(frozen=True)
class Overheads:
    """Of one run of the program; what is in a loop counts as often as it turns."""

    copies: int
    """Instructions that only bring an array into another order, or to another place."""
    copied_bytes: int
    """What these write."""
    stacked_bytes: int
    """What is only put into arrays of all turns of a loop, such as those of what the layers keep for the backward pass,
    or taken out of them."""
    flops: int
    """Of matrix products, kernels left out."""
    float32_flops: int
    """Of those whose factors are float32, which without TensorFloat-32 are made without tensor cores."""
    repeated: int
    """Instructions that the compiler executes again, as there was too little memory to keep what they make."""


def overheads(hlo: str, trip_count: int | None = None) -> Overheads:
    """The overheads of an optimised program (`compiled.as_text()`).

    Args:
        trip_count: turns of a loop of which the text does not tell, see `hlo.loop_turns`; it counts once without.
    """
    module = hlo_text.parse(hlo)
    copies = copied = stacked = flops = float32 = repeated = 0
    for place, computation, instruction in hlo_text.walk(module, module.entry, Place(), trip_count):
        count = 1 if place.count is None else place.count
        if factors := _factors(module.computations[computation], instruction):
            own = count * _flops(instruction, factors[0])
            flops += own
            float32 += own if all(factor.dtype == "f32" for factor in factors) else 0
        if any(_is_whole(caller) for _, caller in place.callers):
            continue
        repeated += count * (".remat" in instruction.name)
        done = _done(module, instruction)
        if done and done.keys() <= _MOVES:
            copies, copied = copies + count, copied + count * sum(done.values())
        elif done and done.keys() <= _MOVES | _SLICES:
            stacked += count * sum(done[opcode] for opcode in done.keys() & _SLICES)
    return Overheads(copies, copied, stacked, flops, float32, repeated)


def _is_whole(instruction: Instruction) -> bool:
    """Whether what an instruction calls is executed as one with it."""
    return instruction.opcode not in ("call", "conditional", "async-start")


_MOVES, _SLICES = {"copy", "copy-start", "transpose"}, {"dynamic-slice", "dynamic-update-slice"}
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape", "opt-barrier")


def _done(module: Module, instruction: Instruction) -> Mapping[str, int]:
    """What an instruction does with arrays, and bytes of what comes of it, by opcode. A fusion does what is in it."""
    inside: Sequence[Instruction] = [instruction]
    if instruction.opcode in ("fusion", "fusion-start"):
        inside = [each for called in instruction.called for each in module.computations[called]]
    by_name = {each.name: each for each in inside}
    done: dict[str, int] = {}
    for each in inside:
        arrays = each.arrays
        if each.opcode == "dynamic-update-slice" and each.operands[1] in by_name:
            arrays = by_name[each.operands[1]].arrays
        elif each.opcode == "copy-start":  # the copy, the original, a scalar
            arrays = arrays[:1]
        # Scalars say which turn it is.
        if each.opcode not in _FREE and not each.opcode.endswith("-done") and any(array.shape for array in each.arrays):
            done[each.opcode] = done.get(each.opcode, 0) + sum(array.bytes for array in arrays)
    return done


def _factors(computation: Sequence[Instruction], instruction: Instruction) -> list[Array]:
    """The two factors, where an instruction is a matrix product."""
    is_product = instruction.opcode == "dot" or 'custom_call_target="__cublas$' in instruction.text
    if not is_product:
        return []
    by_name = {each.name: each for each in computation}
    return [by_name[name].arrays[0] for name in instruction.operands[:2]]


_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)')


def _flops(product: Instruction, first: Array) -> int:
    match = _CONTRACTED.search(product.text)
    contracted = [] if match is None else [int(axis) for axis in re.findall(r"\d+", match[1])]
    return 2 * product.arrays[0].size * math.prod(first.shape[axis] for axis in contracted)
