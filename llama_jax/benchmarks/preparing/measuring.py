"""`benchmark prepare`: what its settings ask for."""

from typing import Any

from llama_jax.benchmarks.preparing.comparison import compare_preparation
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.preparing.corpus_plan import planned
from llama_jax.benchmarks.preparing.steps import measure_steps


def measure_preparation(config: PrepareBenchmarkConfig) -> dict[str, Any]:
    """The rates of all steps, and what the corpus of LLaMA takes by them; or both sides of a comparison."""
    if config.against is not None:
        return compare_preparation(config)
    measured = measure_steps(config)
    return measured if config.machines is None else measured | {"plan": planned(config, measured, config.machines)}
