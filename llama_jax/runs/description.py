"""What will be run, in words and bytes, before anything is."""

import time
from collections.abc import Mapping

import jax

from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.model.attention.choice import Shapes, choose
from llama_jax.model.flops import CONVENTION
from llama_jax.training.program import Program


def print_dry_run(who: str, program: Program, name: str) -> None:
    """Compile the step, and print what would be run.

    Args:
        who: the line of `start_up`.
        name: of the model, for people.
    """
    report = f"{who}\n{description(program, name)}\n{compiled_report(program)}"  # all processes compile together
    if is_main_process():
        print(report)


def description(program: Program, name: str) -> str:
    """What will be run: model, mesh, chosen implementations, FLOPs and tokens.

    Args:
        name: of the model, for people.
    """
    model, training = program.model, program.config
    length, rows = program.sequence_length, training.batch_size
    tokens, total = program.batch.tokens_per_row(length), program.tokens_until(training.steps)
    axes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    shapes = Shapes.of_whole_rows(model.config, model.compute, rows // training.microbatches, length)
    with jax.set_mesh(program.mesh):
        attention = choose(model.compute.attention, shapes)
    parameters, trained = model.parameter_count(), tree.size(program.state_shapes.trainable)
    train = "" if program.trains_all else f", {trained:,} train ({trained / parameters:.4%} of the model's)"
    return "\n".join(
        [
            f"model: {name}, {parameters:,} parameters{train}, {model.compute.dtype}, "
            f"attention {attention}, remat {model.compute.remat}",
            f"mesh: {axes} = {program.mesh.size} devices",
            f"batch: {rows:,} rows x {tokens:,} tokens = {rows * tokens:,} tokens a step"
            + (f", ramp {[list(stage) for stage in training.batch_ramp]}" if training.batch_ramp else ""),
            f"training: {training.steps:,} steps, {total:,} tokens, {total / parameters:.1f} tokens a parameter",
            f"FLOPs: {program.flops_per_token:,} a token, {program.flops_per_token * total:.3g} in all ({CONVENTION})",
        ]
    )


def compiled_report(program: Program) -> str:
    """Bytes on each device, by kind, from the compiled step."""
    started = time.perf_counter()
    rows = program.config.batch_size
    with jax.set_mesh(program.mesh):
        compiled = program.step.lower(  # pyright: ignore[reportFunctionMemberAccess]
            program.state_shapes, program.frozen_shapes, program.batch_shapes(rows)
        ).compile()
    state = program.state_shapes
    kinds: Mapping[str, PyTree] = {
        "parameters": (state.trainable, program.frozen_shapes),
        "optimizer": (state.optimizer_state, state.guard),
        "batch": program.batch_shapes(rows),
    }
    lines = [f"{kind:<12}{sharding.bytes_on_a_device(shapes):>20,} bytes a device" for kind, shapes in kinds.items()]
    memory = compiled.memory_analysis()
    lines.append(f"{'temporary':<12}{memory.temp_size_in_bytes:>20,} bytes a device, as compiled for this platform")
    return "\n".join([*lines, f"compiled in {time.perf_counter() - started:.1f} s"])
