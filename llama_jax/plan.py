"""Compile a run for hardware that is not here: `python -m llama_jax.plan`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("plan")

import functools
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from llama_jax import lora, pretrain, sft
from llama_jax.config import PlanConfig, PlanLoraConfig, PlanSftConfig
from llama_jax.core import sharding, tree
from llama_jax.core.chips import CHIPS
from llama_jax.model.attention import Shapes, choose
from llama_jax.model.config import LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.planning.decoding import lower_decode
from llama_jax.planning.hardware import Topology, parse_topology
from llama_jax.planning.layout_minimum import layout_minimum
from llama_jax.planning.report import Lowered, compiled_report
from llama_jax.planning.text import heading_lines, report_lines
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
    planned = _decode if config.what == "decode" else _step
    facts, lowered = planned(config, devices)
    hardware = {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "devices": topology.num_devices,
        "device_kind": devices[0].device_kind,
        "mesh": dict(lowered.mesh.shape),
    }
    say("\n".join(heading_lines({**facts, **hardware})))
    report = {**facts, **hardware, **compiled_report(lowered, chip), "versions": _versions(topology)}
    say("\n".join(report_lines(report)))
    if config.json:
        print(json.dumps(report))


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
        attention = str(choose(model.compute.attention, shapes))
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
        "attention": attention,
    }
    held = {
        "parameters": state.trainable,
        "frozen": program.frozen_shapes,
        "optimizer": (state.optimizer_state, state.guard),
        "batch": batch,
    }
    flops = program.flops_per_token * rows * length
    return facts, Lowered(traced, program.mesh, held, flops, layout_minimum(program))


def _decode(config: Planned, devices: Sequence[Any]) -> tuple[dict[str, Any], Lowered]:
    """One token for each row, with weights in the type of computation."""
    architecture = _architecture(config)
    model = language_model(architecture, config.compute)
    mesh = sharding.make_mesh(config.mesh, devices)
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
