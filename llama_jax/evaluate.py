"""Measure a model: `python -m llama_jax.evaluate`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("evaluate")

import json
import sys

from llama_jax.core.processes.distributed import is_main_process
from llama_jax.evals.config import EvaluateConfig
from llama_jax.evals.evaluation import evaluate_model


def evaluate(config: EvaluateConfig) -> None:
    """Print the metrics of the task, and as JSON all that they depend on; with `output` also write them to that file,
    and beside it each document with its score or answer."""
    result = evaluate_model(config, sys.stderr if config.json else sys.stdout)
    if config.json and is_main_process():
        print(json.dumps(result))
