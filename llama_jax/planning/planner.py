"""The answers of `plan`: a step of training or of decoding compiled, or many ways to run the step compared. Independent
of commands: what is planned is the `Program` that a command's `build` makes."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from llama_jax.core import tree
from llama_jax.core.chips import CHIPS, Chip
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention.blocks import blocks_visited
from llama_jax.model.attention.choice import Shapes, choose
from llama_jax.model.llama import LanguageModel
from llama_jax.planning.config import PlannedConfig
from llama_jax.planning.decoding import lowered_decode
from llama_jax.planning.estimates.layout import StepPlan, parameters, resolved
from llama_jax.planning.estimates.layout_minimum import layout_minimum
from llama_jax.planning.estimates.memory_model import memory_estimate
from llama_jax.planning.hardware import Topology
from llama_jax.planning.report import Lowered, compiled_report
from llama_jax.planning.search import candidates, remedies
from llama_jax.planning.text import heading_lines, remedy_lines, report_lines, search_lines
from llama_jax.training.program import Program

Build = Callable[[Any, Sequence[Any]], Program]
"""A training command's `build`: lays the run of its settings out over the given devices."""


def step_plan(config: PlannedConfig, program: Program, topology: Topology) -> StepPlan:
    """The step of a program as the models of memory and time take it, on the mesh of the config."""
    return StepPlan(
        model=program.model.config,
        compute=program.model.compute,
        training=program.config,
        sequence_length=program.sequence_length,
        mesh=resolved(config.run.mesh, topology.num_devices),
        batch=program.batch,
        parameters=parameters(program.partition),
        base=None if program.trains_all else getattr(config, "model_dtype", None),
        platform=topology.platform,
    )


@dataclass(frozen=True)
class Planner:
    """One call of `plan`."""

    config: PlannedConfig
    command: str
    """Name of the command that is planned."""
    build: Build
    topology: Topology
    devices: Sequence[Any]
    """Those of the topology, see `topology.absent_devices`."""
    say: Callable[[str], None]
    """Prints lines for people."""

    def report(self) -> dict[str, Any]:
        """Compile what the config asks for; everything that came of it as JSON values.

        Raises:
            UserError: the run cannot be laid out over these devices.
        """
        if self.config.search:
            report = self._search()
        elif self.config.what == "decode":
            report = self._compiled(*self._decode())
        else:
            report = self._step_and_remedies()
        return {**report, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """What is compiled for, and by what."""
        return {**self._hardware, "versions": _versions(self.topology)}

    @property
    def _hardware(self) -> dict[str, Any]:
        return {
            "topology": self.topology.name,
            "num_slices": self.topology.num_slices,
            "devices": self.topology.num_devices,
            "device_kind": self.devices[0].device_kind,
        }

    @property
    def chip(self) -> Chip:
        """What the makers say of a device."""
        return CHIPS[self.devices[0].device_kind]

    @cached_property
    def _undivided(self) -> Program:
        """The run on one device, on which any model and any batch can be laid out."""
        alone: dict[str, Any] = {"mesh": MeshConfig()}
        return self.build(replace(self.config, **alone), self.devices[:1])

    def _step_and_remedies(self) -> dict[str, Any]:
        """The step, and where it does not fit, what would make it fit."""
        program = self.build(self.config, self.devices)
        facts, lowered = self._step(program)
        estimated = step_plan(self.config, program, self.topology)
        facts |= {"memory_estimate": dict(memory_estimate(estimated).bytes_by_kind)}
        shape = self.topology.shape
        if math.prod(shape) == estimated.mesh.fsdp and len(shape) > 1 and not estimated.mesh.fsdp_stages:
            facts |= {"stages": list(shape)}
        report = self._compiled(facts, lowered)
        if not report["fits"]:
            report["remedies"] = [
                {
                    "options": each.options,
                    "estimated": {"memory": each.memory_bytes, "seconds": each.seconds, "time_a_token": each.cost},
                }
                for each in remedies(estimated, self.topology, self.chip, report["memory"]["needed"])
            ]
            self.say("\n".join(remedy_lines(report["remedies"])))
        return report

    def _search(self) -> dict[str, Any]:
        """Candidates by estimate, the best of them compiled."""
        plan = step_plan(self.config, self._undivided, self.topology)
        found = candidates(plan, self.topology, self.chip, sequence=plan.mesh.sequence > 1)
        fitting = [each for each in found if each.fits]
        self.say(f"search:     {len(found):,} candidates on {self.topology.name}, {len(fitting):,} fit by the estimate")
        ranked = []
        for number, each in enumerate((fitting or found)[: self.config.shown], 1):
            estimated = {"memory": each.memory.total, "seconds": each.time.total, "fits": each.fits}
            entry: dict[str, Any] = {"options": each.options, "estimated": estimated}
            if number <= self.config.compiled:
                self.say(f"compiling {number} of {self.config.compiled}: {each.options}")
                sections: dict[str, Any] = {name: getattr(each.plan, name) for name in ("mesh", "compute", "training")}
                facts, lowered = self._step(self.build(replace(self.config, **sections), self.devices))
                entry |= {"attention": facts["attention"], **compiled_report(lowered, self.chip)}
            ranked.append(entry)
        # What was compiled is known better: first those that fit, by the roofline of the program.
        compiled = [entry for entry in ranked if "compile_seconds" in entry]
        compiled.sort(key=lambda entry: (not entry["fits"], entry["fits"] and entry["roofline"]["as_scheduled"]))
        ranked = compiled + [entry for entry in ranked if "compile_seconds" not in entry]
        self.say("\n".join(search_lines(ranked)))
        fits = any(entry.get("fits", False) for entry in compiled)
        return {"what": "search", "fits": fits, "candidates": len(found), "fitting": len(fitting), "ranked": ranked}

    def _compiled(self, facts: dict[str, Any], lowered: Lowered) -> dict[str, Any]:
        facts |= {"mesh": dict(lowered.mesh.shape)}
        self.say("\n".join(heading_lines({**facts, **self._hardware})))
        report = facts | compiled_report(lowered, self.chip)
        self.say("\n".join(report_lines(report)))
        return report

    def _step(self, program: Program) -> tuple[dict[str, Any], Lowered]:
        """One step of training, as the command runs it."""
        facts, lowered = training_step(program)
        return {"what": f"{self.command} step", "model": _model_name(self.config), **facts}, lowered

    def _decode(self) -> tuple[dict[str, Any], Lowered]:
        """One token for each row, with weights in the type of computation."""
        config, model = self.config, self._undivided.model
        mesh = make_mesh(config.run.mesh, self.devices)
        facts = {
            "what": "decode step",
            "model": _model_name(config),
            "parameters": model.parameter_count(),
            "rows": config.decode_rows,
            "slots": config.decode_slots,
            "dtype": config.decode_weights or model.compute.dtype,
        }
        sizes = (config.decode_rows, config.decode_slots)
        return facts, lowered_decode(model, mesh, *sizes, weights=config.decode_weights)


def training_step(program: Program) -> tuple[dict[str, Any], Lowered]:
    """One step of a program, and what is known of it before it is compiled."""
    model, training, length = program.model, program.config, program.sequence_length
    rows, state = training.batch_size, program.state_shapes
    with jax.set_mesh(program.mesh):
        batch = program.batch_shapes(rows)
        traced = program.step.trace(state, program.frozen_shapes, batch)  # pyright: ignore[reportFunctionMemberAccess]
        attention, turns = attention_of(model, rows // training.microbatches, length)
    facts = {
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
    return facts, Lowered(traced, program.mesh, held, flops, layout_minimum(program), turns)


def attention_of(model: LanguageModel, rows: int, length: int) -> tuple[str, float | None]:
    """What computes attention in whole rows on the mesh in use, and the turns of its loop, if it has one."""
    chosen = choose(model.compute.attention, Shapes.of_whole_rows(model.config, model.compute, rows, length))
    return str(chosen), blocks_visited(length) if chosen.name == "blocked" else None


def _model_name(settings: Any) -> str:
    """The published size, where the settings name one; else the model that they begin with."""
    return getattr(settings.model, "size", None) or getattr(settings, "size", None) or str(settings.model)


def _versions(topology: Topology) -> dict[str, str]:
    compiler = ("libtpu",) if topology.platform == "tpu" else ("jax-cuda12-plugin", "jax-cuda13-plugin")
    found = {}
    for package in ("llama_jax", "jax", "flax", *compiler):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
