"""Compile a run for hardware that is not here: `python -m llama_jax.plan`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("plan")

import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from llama_jax import lora, pretrain, sft
from llama_jax.config import PlanConfig, PlanLoraConfig, PlanSftConfig
from llama_jax.core import tree
from llama_jax.core.chips import CHIPS, Chip
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention.blocks import blocks_visited
from llama_jax.model.attention.choice import Shapes, choose
from llama_jax.model.config import LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.planning.decoding import lower_decode
from llama_jax.planning.estimates.layout import StepPlan, resolved
from llama_jax.planning.estimates.layout_minimum import layout_minimum
from llama_jax.planning.estimates.memory_model import memory_estimate
from llama_jax.planning.hardware import Topology, parse_topology
from llama_jax.planning.report import Lowered, compiled_report
from llama_jax.planning.search import Candidate, Remedy, candidates, remedies
from llama_jax.planning.text import heading_lines, remedy_lines, report_lines, search_lines
from llama_jax.planning.topology import absent_devices
from llama_jax.supervised.fine_tuning import architecture_of
from llama_jax.training.program import Program

Planned = PlanConfig | PlanSftConfig | PlanLoraConfig

_COMMANDS = {PlanConfig: pretrain, PlanSftConfig: sft, PlanLoraConfig: lora}


def plan(config: Planned) -> None:
    """Run the command."""
    say = functools.partial(print, file=sys.stderr if config.json else sys.stdout, flush=True)
    topology = parse_topology(config.topology, config.num_slices)
    devices = absent_devices(topology)
    chip = CHIPS[devices[0].device_kind]
    hardware = {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "devices": topology.num_devices,
        "device_kind": devices[0].device_kind,
    }
    if config.search:
        report = _search(config, topology, chip, devices, say)
    elif config.what == "decode":
        report = _compiled(*_decode(config, devices), hardware, chip, say)
    else:
        estimated = step_plan(config, topology)
        facts, lowered = _step(config, devices)
        facts |= {"memory_estimate": dict(memory_estimate(estimated).bytes_by_kind)}
        if math.prod(topology.shape) == estimated.mesh.fsdp and len(topology.shape) > 1 and not config.mesh.fsdp_stages:
            facts |= {"stages": list(topology.shape)}
        report = _compiled(facts, lowered, hardware, chip, say)
        if not report["fits"]:
            found = remedies(estimated, topology, chip, report["memory"]["needed"])
            report["remedies"] = [_remedy(each) for each in found]
            say("\n".join(remedy_lines(report["remedies"])))
    if config.json:
        print(json.dumps({**report, **hardware, "versions": _versions(topology)}))


def _compiled(
    facts: dict[str, Any], lowered: Lowered, hardware: dict[str, Any], chip: Chip, say: Callable[[str], None]
) -> dict[str, Any]:
    """The report of one program."""
    facts |= {"mesh": dict(lowered.mesh.shape)}
    say("\n".join(heading_lines({**facts, **hardware})))
    report = facts | compiled_report(lowered, chip)
    say("\n".join(report_lines(report)))
    return report


def step_plan(config: Planned, topology: Topology) -> StepPlan:
    """The step as the models of memory and time take it."""
    return StepPlan(
        model=_architecture(config),
        compute=config.compute,
        training=config.training,
        sequence_length=config.data.sequence_length,
        mesh=resolved(config.mesh, topology.num_devices),
        adapter=config.lora if isinstance(config, PlanLoraConfig) else None,
        base=config.model_dtype if isinstance(config, PlanLoraConfig) else "float32",
    )


def _search(
    config: Planned, topology: Topology, chip: Chip, devices: Sequence[Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Candidates by estimate, the best of them compiled."""
    found = candidates(step_plan(config, topology), topology, chip, sequence=config.mesh.sequence > 1)
    fitting = [each for each in found if each.fits]
    say(f"search:     {len(found):,} candidates on {topology.name}, {len(fitting):,} fit by the estimate")
    ranked = []
    for number, each in enumerate((fitting or found)[: config.shown], 1):
        entry = _candidate(each)
        if number <= config.compiled:
            say(f"compiling {number} of {config.compiled}: {each.options}")
            changed = replace(config, mesh=each.plan.mesh, compute=each.plan.compute, training=each.plan.training)
            facts, lowered = _step(changed, devices)
            entry |= {"attention": facts["attention"], **compiled_report(lowered, chip)}
        ranked.append(entry)
    # What was compiled is known better: first those that fit, by the roofline of the program.
    compiled = [entry for entry in ranked if "compile_seconds" in entry]
    compiled.sort(key=lambda entry: (not entry["fits"], entry["fits"] and entry["roofline"]["as_scheduled"]))
    ranked = compiled + [entry for entry in ranked if "compile_seconds" not in entry]
    say("\n".join(search_lines(ranked)))
    fits = any(entry.get("fits", False) for entry in compiled)
    return {"what": "search", "fits": fits, "candidates": len(found), "fitting": len(fitting), "ranked": ranked}


def _candidate(found: Candidate) -> dict[str, Any]:
    return {
        "options": found.options,
        "estimated": {"memory": found.memory.total, "seconds": found.time.total, "fits": found.fits},
    }


def _remedy(found: Remedy) -> dict[str, Any]:
    return {
        "options": found.options,
        "estimated": {"memory": found.memory_bytes, "seconds": found.seconds, "time_a_token": found.cost},
    }


def _step(config: Planned, devices: Sequence[Any]) -> tuple[dict[str, Any], Lowered]:
    """One step of training, as the command runs it."""
    command = _COMMANDS[type(config)]
    program: Program = command.build(config, devices)  # pyright: ignore[reportArgumentType]
    model, training, length = program.model, program.config, program.sequence_length
    rows, state = training.batch_size, program.state_shapes
    shapes = Shapes.of_whole_rows(model.config, model.compute, rows // training.microbatches, length)
    with jax.set_mesh(program.mesh):
        batch = program.batch_shapes(rows)
        traced = program.step.trace(state, program.frozen_shapes, batch)  # pyright: ignore[reportFunctionMemberAccess]
        attention = choose(model.compute.attention, shapes)
        turns = blocks_visited(length) if attention.name == "blocked" else None
    facts = {
        "what": f"{command.__name__.rpartition('.')[2]} step",
        "model": _name(config),
        "parameters": model.parameter_count(),
        "trained": tree.size(state.trainable),
        "rows": rows,
        "sequence_length": length,
        "microbatches": training.microbatches,
        "dtype": model.compute.dtype,
        "remat": model.compute.remat,
        "attention": str(attention),
    }
    held = {
        "parameters": state.trainable,
        "frozen": program.frozen_shapes,
        "optimizer": (state.optimizer_state, state.guard),
        "batch": batch,
    }
    flops = program.flops_per_token * rows * length
    return facts, Lowered(traced, program.mesh, held, flops, layout_minimum(program), turns)


def _decode(config: Planned, devices: Sequence[Any]) -> tuple[dict[str, Any], Lowered]:
    """One token for each row, with weights in the type of computation."""
    architecture = _architecture(config)
    model = language_model(architecture, config.compute)
    mesh = make_mesh(config.mesh, devices)
    program = lower_decode(model, mesh, config.decode_rows, config.decode_slots)
    facts = {
        "what": "decode step",
        "model": _name(config),
        "parameters": model.parameter_count(),
        "rows": config.decode_rows,
        "slots": config.decode_slots,
        "dtype": config.compute.dtype,
    }
    rest = program.state.replace(caches=[])
    held = {"parameters": program.params, "caches": program.state.caches, "batch": rest}
    return facts, Lowered(program.traced, mesh, held, program.flops, [])


def _architecture(config: Planned) -> LlamaConfig:
    return config.model.architecture if isinstance(config, PlanConfig) else architecture_of(config)


def _name(config: Planned) -> str:
    return config.model.size if isinstance(config, PlanConfig) else config.size or str(config.model)


def _versions(topology: Topology) -> dict[str, str]:
    compiler = ("libtpu",) if topology.platform == "tpu" else ("jax-cuda12-plugin", "jax-cuda13-plugin")
    found = {}
    for package in ("llama_jax", "jax", "flax", *compiler):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
