"""Benchmarks that need nothing of the commands that train, and keep what they find themselves."""

from typing import TypeAlias

from llama_jax.benchmarks.config import RougeConfig
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.preparing.measuring import measure_preparation
from llama_jax.benchmarks.rouge import measure_rouge

StandaloneConfig: TypeAlias = RougeConfig | PrepareBenchmarkConfig


def measure_standalone(config: StandaloneConfig) -> None:
    """The one that the settings are of."""
    if isinstance(config, RougeConfig):
        measure_rouge(config)
    else:
        measure_preparation(config)
