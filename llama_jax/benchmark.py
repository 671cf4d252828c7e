"""Measure speed and memory: `python -m llama_jax.benchmark train`, `… lora`, `… dpo`, `… decode`, `… data`, …"""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("benchmark")

import functools
import tempfile
from collections.abc import Sequence
from typing import Any

from llama_jax import dpo, grpo, ppo
from llama_jax.benchmarks import turns
from llama_jax.benchmarks.against import compare, own_turn
from llama_jax.benchmarks.config import DpoBenchmarkConfig
from llama_jax.benchmarks.data import measure_data
from llama_jax.benchmarks.decoding.comparison import measure_decoding
from llama_jax.benchmarks.decoding.dry_run import describe_decoding
from llama_jax.benchmarks.decoding.engine_side import engine_turn
from llama_jax.benchmarks.dpo.comparison import compare_dpo
from llama_jax.benchmarks.dpo.own_side import dpo_turn
from llama_jax.benchmarks.results import AnyBenchmarkConfig, keep, say
from llama_jax.benchmarks.rl.comparison import compare_rl
from llama_jax.benchmarks.rl.config import RlBenchmarkConfig
from llama_jax.benchmarks.rl.own_side import rl_turn
from llama_jax.benchmarks.scaling import measure_scaling
from llama_jax.benchmarks.standalone import StandaloneConfig, measure_standalone
from llama_jax.benchmarks.step import build, measure_step
from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.processes.distributed import is_main_process, start_up
from llama_jax.core.settings.command_line import parse
from llama_jax.planning.decoding import lowered_decode
from llama_jax.rl.running import iterations
from llama_jax.supervised.preferences import preference_method

_OWN_SIDE = "llama_jax.benchmark:own_side"


def benchmark(config: AnyBenchmarkConfig | StandaloneConfig) -> None:
    """Print what was measured, and write it to `WHAT.json` in `output`; `scaling` draws `scaling.png` beside it."""
    if isinstance(config, StandaloneConfig):
        measure_standalone(config)
    elif isinstance(config, DpoBenchmarkConfig):
        keep(config, config.name, compare_dpo(config, _OWN_SIDE))
    elif isinstance(config, RlBenchmarkConfig):
        keep(config, config.name, compare_rl(config, _OWN_SIDE))
    elif config.run.dry_run:
        describe_decoding(config, lowered_decode)
    elif config.is_in_turns:
        # Nothing here may start JAX: the memory and the processors belong to the sides.
        keep(config, config.name, (measure_decoding if config.what == "decode" else compare)(config, _OWN_SIDE))
    else:
        say(config, start_up(config.run.distributed))
        scaling = functools.partial(measure_scaling, build=build)
        result = {"train": measure_step, "lora": measure_step, "data": measure_data, "scaling": scaling}[config.what](
            config
        )
        if is_main_process():
            keep(config, config.name, result)


def own_side() -> None:
    """Entry point of our side of a comparison, see `turns.Side`; its task is a command and its settings as YAML."""

    def prepare(task: Sequence[str]) -> tuple[turns.Turn, dict[str, Any]]:
        command, settings = task
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(settings)
            file.flush()
            arguments = ["--config", file.name]
            config: Any = parse(COMMANDS[command], arguments, command=command, commands=COMMANDS, presets=PRESETS)
        if command == "benchmark dpo":
            return dpo_turn(config, preference_method(config), dpo.supervision(config))
        if isinstance(config, RlBenchmarkConfig):
            recipe = {"grpo": grpo.recipe, "ppo": ppo.recipe}[config.what](config)
            return rl_turn(config, functools.partial(iterations, recipe=recipe, command=config.what))
        return engine_turn(config) if config.what == "decode" else own_turn(config, build)

    turns.serve(prepare)
