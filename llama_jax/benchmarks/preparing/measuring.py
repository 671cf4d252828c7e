"""`benchmark prepare`: what its settings ask for."""

from llama_jax.benchmarks.preparing.comparison import compare_preparation
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.preparing.corpus_plan import planned
from llama_jax.benchmarks.preparing.steps import measure_steps
from llama_jax.benchmarks.results import keep


def measure_preparation(config: PrepareBenchmarkConfig) -> None:
    """Keep the rates of all steps, and what the corpus of LLaMA takes by them; or both sides of a comparison."""
    if config.against is not None:
        keep(config, config.name, compare_preparation(config))
        return
    measured = measure_steps(config)
    plan = {} if config.machines is None else {"plan": planned(config, measured, config.machines)}
    keep(config, config.name, measured | plan)
