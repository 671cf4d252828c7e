"""A program that is ready to be compiled, with what its report needs besides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from llama_jax.core.arrays import PyTree
from llama_jax.planning.compiled.collectives import Collective


@dataclass(frozen=True)
class Lowered:
    """A program before it is compiled, and what is known of it by then."""

    traced: jax.stages.Traced
    mesh: Mesh
    held: Mapping[str, PyTree]
    """Shapes and shardings of what lies in memory between two runs of the program, by kind."""
    model_flops: int
    """By the formula, over all devices."""
    minimum: Sequence[Collective]
    """The exchanges that the layout cannot do without; empty: not known."""
    loop_turns: float | None = None
    """Turns of a loop whose number only a running program knows, on average."""
