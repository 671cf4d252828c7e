"""What a benchmark says while it measures, and the file that keeps what it found."""

import json
import sys
from typing import Any

from etils import epath

from llama_jax.benchmarks.config import BenchmarkConfig, DpoBenchmarkConfig
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.rl.config import RlBenchmarkConfig
from llama_jax.core.files import write_whole
from llama_jax.core.processes.distributed import is_main_process

AnyBenchmarkConfig = BenchmarkConfig | DpoBenchmarkConfig | PrepareBenchmarkConfig | RlBenchmarkConfig


def say(config: AnyBenchmarkConfig, text: str) -> None:
    """Print a line for people, from process 0."""
    # Beside the sides of a comparison this process must not ask JAX which one it is, since that starts it; it is the
    # only one then.
    if config.is_in_turns or is_main_process():
        print(text, file=sys.stderr if config.json else sys.stdout, flush=True)


def keep(config: AnyBenchmarkConfig, name: str, result: dict[str, Any]) -> None:
    """Write `NAME.json`, and print it where that is asked for."""
    file = epath.Path(config.output) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=2) + "\n")
    say(config, f"kept in {file}")
    if config.json:
        print(json.dumps(result))


def gigabytes(count: int | float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB"
