"""Floating-point operations of a traced program, counted from its jaxpr: those of matrix products, convolutions and
attention kernels, which are nearly all. Knows no model.

What the compiler adds or saves afterwards is not seen; what each device does again for itself is, where the program
says so (`jax.shard_map`), and is not where the compiler decides it."""

import math
import re
from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params, subjaxprs
from jax.interpreters import partial_eval

_AXIS_OF_KEYS = {r"splash_m[hq]a_(fwd|dq|dkv)": -2, r"mha_(forward|backward)": 1, "mha_preprocess_backward": None}
"""JAX's attention kernels for TPU and Triton, which give no cost estimate of their own: by name, the axis of keys in
their second large operand; None: it has no products."""


def program_flops(jaxpr: Any, loop_turns: int | float | None = None) -> int:
    """FLOPs of one run of a program over all devices, a multiplication and an addition counted as two. A program is
    such as `program.step.trace(...).jaxpr`: a `Jaxpr`, and of JAX 0.10 a `ClosedJaxpr` around it.

    A scan counts as often as it is long, and of a conditional the branch that has most. A function run by each device
    (`jax.shard_map`) counts once for every device of its manual axes. A kernel counts as it says itself; JAX's
    attention kernels, which say nothing, as causal attention: half of all scores, the convention of `model.flops`.

    Args:
        loop_turns: turns of a `while_loop` that holds products, on average. (Attention of `blocked` has such loops: of
            n blocks of keys, a block of queries meets (n + 1) / 2 on average.)

    Raises:
        ValueError: the program has a `while_loop` with products and no `loop_turns` were given, or a kernel that says
            nothing and is not known here.
    """
    # What nothing reads is left out, as by the compiler: `jax.checkpoint` may repeat a kernel whose results were kept.
    (plain,) = jaxprs_in_params({"program": jaxpr})
    used, _ = partial_eval.dce_jaxpr(plain, True)
    return sum(_counted(used, 1, "", loop_turns))


def _counted(jaxpr: Jaxpr, times: int, scope: str, loop_turns: int | float | None) -> Iterator[int]:
    """FLOPs of each operation that has some."""
    for equation in jaxpr.eqns:
        primitive, params = equation.primitive.name, equation.params
        name = f"{scope}/{equation.source_info.name_stack}"
        if primitive == "dot_general":
            yield times * _dot(equation)
        elif primitive == "conv_general_dilated":
            yield times * _convolution(equation)
        elif primitive == "pallas_call":
            yield times * _kernel(equation)
        elif primitive == "cond":
            branches = [list(_counted(branch, times, name, loop_turns)) for branch in jaxprs_in_params(params)]
            yield from max(branches, key=sum)
        elif primitive == "while":
            inside = [each for part in jaxprs_in_params(params) for each in _counted(part, times, name, 1)]
            if inside and loop_turns is None:
                raise ValueError(f"the while_loop {name} does not tell how often it turns; pass loop_turns")
            yield from (round(flops * (loop_turns or 0)) for flops in inside)
        else:
            factor = params["length"] if primitive == "scan" else 1
            if primitive == "shard_map":
                factor = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
            for part in jaxprs_in_params(params):
                yield from _counted(part, times * factor, name, loop_turns)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs


def _kernel(equation: JaxprEqn) -> int:
    params = equation.params
    if (estimate := params["cost_estimate"]) is not None:
        return int(estimate.flops)
    name = params["name"]
    for pattern, axis in _AXIS_OF_KEYS.items():
        if re.match(pattern, name):
            return 0 if axis is None else _causal_attention(equation, axis)
    raise ValueError(f"the kernel {name} gives no cost estimate, and is not known to planning.program_flops")


def _causal_attention(equation: JaxprEqn, axis_of_keys: int) -> int:
    """Half of all scores, for each of the products in the kernel: all are of queries by keys, along the head or not."""
    types: list[Any] = [variable.aval for variable in equation.invars]
    queries, keys, *_ = (each.shape for each in types if each.dtype.kind not in "iu")
    return _products(equation.params["jaxpr"]) * math.prod(queries) * keys[axis_of_keys]


def _products(jaxpr: Jaxpr) -> int:
    own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return own + sum(map(_products, subjaxprs(jaxpr)))
