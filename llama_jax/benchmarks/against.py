"""`benchmark --against`: our training step and another library's in alternating turns, each in a process of its own.
The process that compares them must not start JAX."""

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import AnyBenchmarkConfig, gigabytes, say
from llama_jax.benchmarks.step import MeasuredStep
from llama_jax.core import tree
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import start_up
from llama_jax.core.settings.command_line import to_yaml
from llama_jax.training.program import Program


def compare(config: BenchmarkConfig, own_side: str) -> dict[str, Any]:
    """Both sides in turns.

    Args:
        own_side: `module:function` that serves our side, see `turns.sides`; its task is the command and its config as
            YAML.

    Raises:
        UserError: a package of the other side is missing, or the run is not for one process on CPU.
    """
    _check_comparable(config)
    task = {
        "model": config.run.model.architecture.to_json(),
        "training": dataclasses.asdict(config.run.training),
        "sequence_length": config.run.data.sequence_length,
        "warmup_steps": config.warmup_steps,
        "compiled": config.compiled,
        "lora": dataclasses.asdict(config.lora) if config.what == "lora" else None,
    }
    programs = {"llama_jax": own_side, str(config.against): "llama_jax.benchmarks.transformers_side:main"}
    with turns.sides(programs) as (ours, theirs):
        # One after the other, so that neither compiles while the other warms up.
        facts = {
            side.name: side.prepare(given) for side, given in ((ours, ["benchmark", to_yaml(config)]), (theirs, task))
        }
        for side in (ours, theirs):
            fact = facts[side.name]
            say(config, f"{side.name}: {fact['what']}, {fact['parameters']:,} parameters, {fact['trained']:,} train")
        if len({(each["parameters"], each["trained"]) for each in facts.values()}) > 1:
            raise RuntimeError("the two sides do not train the same model; their numbers of parameters are above")
        tokens = config.run.training.batch_size * config.run.data.sequence_length
        for number in range(config.turns):
            for side in (ours, theirs):
                side.take_turn(config.steps_per_turn)
            own, other = (tokens / side.seconds[-1] for side in (ours, theirs))
            say(config, f"turn {number + 1:>2}: {own:>9,.1f} and {other:>9,.1f} tokens/s, ratio {own / other:.3f}")
    return compared(config, ours, theirs, facts, tokens, "tokens")


def _check_comparable(config: BenchmarkConfig) -> None:
    check_packages(config, ("torch", "transformers", *(["peft"] if config.what == "lora" else [])))
    training = config.run.training
    if config.run.distributed.coordinator is not None or training.microbatches > 1 or training.trainable:
        raise UserError(
            f"--against {config.against}: is for one process, one microbatch and all parameters; unset "
            "distributed.coordinator, training.microbatches and training.trainable"
        )


def check_packages(config: AnyBenchmarkConfig, packages: Sequence[str]) -> None:
    """Refuse a comparison with a program that is not there.

    Raises:
        UserError: names the package.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--against {config.against}: needs {package}; pip install 'llama_jax[oracle]'")


def compared(
    config: AnyBenchmarkConfig,
    ours: turns.Side,
    theirs: turns.Side,
    facts: dict[str, dict[str, Any]],
    count: int,
    unit: str,
) -> dict[str, Any]:
    """The report of both sides, of steps of so many tokens, or of whatever else is counted."""
    result: dict[str, Any] = {
        side.name: {
            **facts[side.name],
            f"{unit}_per_second": count / statistics.median(side.seconds),
            "step_seconds": turns.summary(side.seconds),
            "peak_host_bytes": side.peak_host_bytes,
        }
        for side in (ours, theirs)
    }
    ratios = [other / own for own, other in zip(ours.seconds, theirs.seconds, strict=True)]
    result["ratio"] = statistics.median(theirs.seconds) / statistics.median(ours.seconds)
    result["ratio_by_turn"] = turns.summary(ratios)
    result["memory_ratio"] = ours.peak_host_bytes / theirs.peak_host_bytes
    digits = 1 if unit == "tokens" else 3
    for side in (ours, theirs):
        speed, noise = result[side.name][f"{unit}_per_second"], result[side.name]["step_seconds"]["noise"]
        say(
            config,
            f"{side.name}: {speed:,.{digits}f} {unit}/s, noise ±{noise:.1%}, peak memory "
            f"{gigabytes(side.peak_host_bytes)}",
        )
    say(
        config,
        f"ratio of the medians: {result['ratio']:.3f} in speed (by turn {min(ratios):.3f}–{max(ratios):.3f}), "
        f"{result['memory_ratio']:.2f} in peak memory",
    )
    return result


def own_turn(config: BenchmarkConfig, build: Callable[[BenchmarkConfig], Program]) -> tuple[turns.Turn, dict[str, Any]]:
    """Our side, in its own process: some steps of the program, warmed up, and facts about it.

    Raises:
        UserError: JAX is not on CPU.
    """
    who = start_up(config.run.distributed)
    if jax.devices()[0].platform != "cpu":
        raise UserError(f"--against {config.against}: compares on CPU, but this is {who}; set JAX_PLATFORMS=cpu")
    program = build(config)
    jax.set_mesh(program.mesh)
    step = MeasuredStep(program)
    step.turn(config.warmup_steps)
    parameters = program.model.parameter_count()
    return step.turn, {
        "what": f"jax {jax.__version__}, {turns.processors()} threads",
        "parameters": parameters,
        "trained": parameters if program.trains_all else tree.size(program.state_shapes.trainable),
        "compile_seconds": step.compile_seconds,
        "memory": step.memory(),
    }
