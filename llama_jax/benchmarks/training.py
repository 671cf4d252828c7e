"""`benchmark train` and `benchmark lora`: the training step, on synthetic tokens."""

from typing import Any

import jax

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import gigabytes, say
from llama_jax.benchmarks.step import MeasuredStep
from llama_jax.model.flops import CONVENTION
from llama_jax.training.program import Program


def measure_step(config: BenchmarkConfig, program: Program) -> dict[str, Any]:
    """Speed, memory and compilation of the step of a program."""
    with jax.set_mesh(program.mesh):
        result = MeasuredStep(program).measure(config.warmup_steps, config.turns, config.steps_per_turn)
    say(config, _described(result))
    return result


def _described(result: dict[str, Any]) -> str:
    """The report of a step for people."""
    seconds, memory, compilation = result["step_seconds"], result["memory"], result["compile_seconds"]
    utilization = result["model_flops_utilization"]
    mfu = "not known, no peak for this device" if utilization is None else f"{utilization:.1%}"
    speeds = result["tokens_per_second_by_turn"]
    device = memory["peak_device_bytes"]
    on_device = "" if device is None else f", fullest device {gigabytes(device)}"
    return "\n".join(
        [
            f"speed:    {result['tokens_per_second']:,.0f} tokens/s (turns {min(speeds):,.0f}–{max(speeds):,.0f}, "
            f"noise ±{seconds['noise']:.1%}), {result['tokens_per_second_per_device']:,.0f} a device",
            f"step:     {seconds['median']:.4f} s for {result['tokens_per_step']:,} tokens",
            f"compiled: {compilation['cold']:.1f} s, {compilation['warm']:.1f} s from the compilation cache",
            f"FLOPs:    {result['model_flops_per_second'] / 1e9:,.1f} GFLOP/s of the model ({CONVENTION}), MFU {mfu}",
            f"memory:   peak of the process {gigabytes(memory['peak_host_bytes'])}{on_device}; by the compiler a "
            f"device holds {gigabytes(memory['arguments'])} between steps and {gigabytes(memory['temporary'])} more "
            "in one",
        ]
    )
