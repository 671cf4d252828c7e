"""A program compiled for hardware that is not here, and the report: memory, FLOPs, what it sends, what bounds it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from llama_jax.core import sharding
from llama_jax.core.arrays import PyTree
from llama_jax.core.chips import Chip
from llama_jax.planning.compiled.collectives import Collective, collectives, wire_bytes
from llama_jax.planning.compiled.memory_traffic import memory_traffic
from llama_jax.planning.compiled.overheads import overheads
from llama_jax.planning.compiled.program_flops import program_flops
from llama_jax.planning.roofline import LABEL, Roofline, roofline
from llama_jax.planning.search import usable_bytes
from llama_jax.planning.topology import DoesNotFitError, compile_without_devices


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
    beside: int = 0
    """Bytes on a device of what lies in memory meanwhile, and the program neither takes nor makes."""


def compiled_report(program: Lowered, chip: Chip) -> dict[str, Any]:
    """Compile the program, and read it. `fits` is false where a device has too little memory, and `memory` then has the
    shortfall; what only a compiled program tells is missing.

    All is of one device and one run of the program, but for the FLOPs of `flops`.
    """
    held = {kind: sharding.bytes_on_a_device(shapes) for kind, shapes in program.held.items()}
    limit = usable_bytes(chip)
    flops = program_flops(program.traced.jaxpr, program.loop_turns)
    report: dict[str, Any] = {
        "flops": {
            "model": program.model_flops,
            "program": flops,
            "recomputation": flops / program.model_flops if program.model_flops else 1.0,
        }
    }
    started = time.perf_counter()
    with jax.set_mesh(program.mesh):
        lowered = program.traced.lower()
    try:
        compiled = compile_without_devices(lowered)
    except DoesNotFitError as error:
        return _refused(error.needed_bytes, error.available_bytes, program.beside, held) | report | _since(started)
    seconds = _since(started)
    hlo = compiled.as_text() or ""
    analysis: Any = compiled.memory_analysis()
    peak = analysis.peak_memory_in_bytes
    if peak + program.beside > limit:
        return _refused(peak, limit, program.beside, held) | report | seconds
    turns = None if program.loop_turns is None else round(program.loop_turns)
    sent = collectives(hlo, turns, program.mesh)
    traffic = memory_traffic(hlo, turns)
    bound = roofline(chip, program.mesh, flops / program.mesh.size, traffic, sent)
    memory = {"limit": limit, "peak": peak, "headroom": limit - peak - program.beside, "held": held}
    memory |= {"beside": program.beside} if program.beside else {}
    memory |= {"temporary": peak - sum(held.values()), "updated_in_place": analysis.alias_size_in_bytes}
    return {
        "fits": True,
        "memory": memory,
        **report,
        "communication": communication(sent, program.minimum),
        "roofline": _roofline(bound, program.model_flops / program.mesh.size / chip.flops),
        "memory_traffic": traffic,
        **({"overheads": asdict(overheads(hlo, turns))} if chip.platform == "gpu" else {}),
        **seconds,
    }


def _refused(needed: int, limit: int, beside: int, held: Mapping[str, int]) -> dict[str, Any]:
    """What is said of a program that needs so much by itself, with what lies beside it."""
    memory: dict[str, Any] = {"limit": limit, "needed": needed + beside, "shortfall": needed + beside - limit}
    memory |= {"beside": beside} if beside else {}
    return {"fits": False, "memory": {**memory, "held": dict(held)}}


def _roofline(bound: Roofline, least: float) -> dict[str, Any]:
    """Seconds by resource, and what they come to; `least` is the time of the model's FLOPs at the peak."""
    return {
        "label": LABEL,
        "seconds": dict(bound.seconds),
        "interconnect_by_axes": {" x ".join(axes): seconds for axes, seconds in bound.by_axes.items()},
        "no_figure": list(bound.unknown),
        "bound": bound.bound,
        "all_at_once": bound.overlapped_seconds,
        "as_scheduled": bound.scheduled_seconds,
        "one_by_one": bound.serial_seconds,
        "most_utilization": least / bound.scheduled_seconds,
    }


def _since(started: float) -> dict[str, float]:
    return {"compile_seconds": round(time.perf_counter() - started, 1)}


def communication(sent: Sequence[Collective], minimum: Sequence[Collective]) -> dict[str, Any]:
    """What is sent, alike exchanges together, beside the minimum."""
    alike: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in sent:
        key = (each.kind, each.axes, each.group_size, each.phase, each.dtypes, each.overlapped)
        entry = alike.setdefault(
            key,
            {
                "kind": each.kind,
                "axes": list(each.axes),
                "devices": each.group_size,
                "slices": each.slices,
                "pass": each.phase,
                "types": list(each.dtypes),
                "overlapped": each.overlapped,
                "count": 0,
                "bytes": 0,
                "wire_bytes": 0,
            },
        )
        entry["count"] += each.count
        entry["bytes"] += each.count * each.bytes
        entry["wire_bytes"] += wire_bytes(each)
    wire, least = sum(map(wire_bytes, sent)), sum(map(wire_bytes, minimum))
    return {
        "collectives": sorted(alike.values(), key=lambda entry: -entry["wire_bytes"]),
        "wire_bytes": wire,
        "minimum_bytes": least or None,
        "ratio": wire / least if least else None,
    }
