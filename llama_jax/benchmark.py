"""Measure speed and memory: `python -m llama_jax.benchmark train`, `… lora`, `… decode`, `… data`, `… scaling`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("benchmark")

import functools
import tempfile
from typing import Any

from llama_jax import pretrain
from llama_jax.benchmarks import turns
from llama_jax.benchmarks.against import compare, own_turn
from llama_jax.benchmarks.config import BenchmarkConfig, RougeConfig
from llama_jax.benchmarks.data import measure_data
from llama_jax.benchmarks.decoding.comparison import measure_decoding
from llama_jax.benchmarks.decoding.dry_run import describe_decoding
from llama_jax.benchmarks.decoding.engine_side import engine_turn
from llama_jax.benchmarks.results import keep, say
from llama_jax.benchmarks.rouge import measure_rouge
from llama_jax.benchmarks.scaling import measure_scaling
from llama_jax.benchmarks.step import measure_step
from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.processes.distributed import is_main_process, start_up
from llama_jax.core.settings.command_line import parse
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.decoding import lowered_decode
from llama_jax.runs.description import description
from llama_jax.runs.methods import build_program, low_rank_adapter
from llama_jax.training.program import Program


def benchmark(config: BenchmarkConfig | RougeConfig) -> None:
    """Print what was measured, and write it to `WHAT.json` in `output`; `scaling` draws `scaling.png` beside it."""
    if isinstance(config, RougeConfig):
        measure_rouge(config)
    elif config.run.dry_run:
        describe_decoding(config, lowered_decode)
    elif config.against is not None or config.what == "decode":
        # Nothing here may start JAX: the memory and the processors belong to the sides.
        measure = measure_decoding if config.what == "decode" else compare
        against = "" if config.against is None else f"_against_{config.against}{'_compiled' * config.compiled}"
        keep(config, f"{config.what}{against}", measure(config, own_side="llama_jax.benchmark:own_side"))
    else:
        say(config, start_up(config.run.distributed))
        scaling = functools.partial(measure_scaling, build=build)
        result = {"train": _step, "lora": _step, "data": measure_data, "scaling": scaling}[config.what](config)
        if is_main_process():
            keep(config, config.what, result)


def own_side() -> None:
    """Entry point of our side of `--against`; see `turns.Side`."""

    def prepare(settings: str) -> tuple[turns.Turn, dict[str, Any]]:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(settings)
            file.flush()
            arguments = ["--config", file.name]
            config = parse(COMMANDS["benchmark"], arguments, command="benchmark", commands=COMMANDS, presets=PRESETS)
        return engine_turn(config) if config.what == "decode" else own_turn(config, build)

    turns.serve(prepare)


def build(config: BenchmarkConfig) -> Program:
    """The training step of `pretrain`, or of `lora` over a model of that architecture."""
    run: Any = config
    if config.what != "lora":
        return pretrain.build(run)
    method = low_rank_adapter(config.lora, config.model_dtype, run.training.peak_learning_rate)
    objective = functools.partial(next_token, z_loss=run.training.z_loss)
    return build_program(run, method, objective, run.model.architecture, run.data.sequence_length)


def _step(config: BenchmarkConfig) -> dict[str, Any]:
    program = build(config)
    say(config, description(program, config.run.model.size))
    return measure_step(config, program)
