"""Compile the steps of `memory_cases.py` for TPUs that are not here, and keep what the compiler says of their memory in
compiled_memory.json: `PYTHONPATH=tests/planning python tests/planning/estimates/record_memory.py`, with the extra
`plan`. Takes about forty minutes on two cores; arguments choose cases by words of their names, and `--missing` those
that are not kept yet."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import jax
from memory_cases import CASES, Case

from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import AdapterConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.topology import absent_devices, compile_without_devices
from llama_jax.runs.methods import low_rank_adapter
from llama_jax.training.program import make_program

KEPT = Path(__file__).parent / "compiled_memory.json"


def compiled_bytes(case: Case) -> dict[str, int]:
    """What one device holds before the step, and at most during it."""
    plan = case.plan
    mesh = make_mesh(plan.mesh, absent_devices(case.topology))
    adapter = None if plan.base is None else AdapterConfig()
    model = language_model(plan.model, plan.compute, 0.0 if adapter is None else adapter.dropout)
    with jax.set_mesh(mesh):
        partition = None if adapter is None else low_rank_adapter(adapter, plan.base, 1e-4).partition(model)
        settings = plan.training, plan.sequence_length, 0, partition
        program = make_program(model, next_token(model), *settings)
        shapes = program.state_shapes, program.frozen_shapes, program.batch_shapes(plan.training.batch_size)
        compiled = compile_without_devices(program.step.lower(*shapes))  # pyright: ignore[reportFunctionMemberAccess]
    memory = compiled.memory_analysis()
    assert memory is not None
    return {"arguments": memory.argument_size_in_bytes, "peak": memory.peak_memory_in_bytes}


def main(words: list[str]) -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"steps": {}}
    steps = kept["steps"]
    for case in CASES:
        if (case.name in steps and "--missing" in words) or not {*words} - {"--missing"} <= {*case.name.split()}:
            continue
        steps[case.name] = compiled_bytes(case)
        print(case.name, steps[case.name], flush=True)
        names = [case.name for case in CASES]
        kept = {
            "versions": {package: version(package) for package in ("jax", "libtpu")},
            "steps": {name: steps[name] for name in names if name in steps},
        }
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
