"""`benchmark data`: the input pipeline alone."""

import dataclasses
import functools
import sys
import time
from typing import Any

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import say
from llama_jax.core import placing
from llama_jax.core.mesh import make_mesh
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, open_mixture
from llama_jax.data.tokenizers import Tokenizer, train_tokenizer


def measure_data(config: BenchmarkConfig) -> dict[str, Any]:
    """Tokens per second that the loader delivers on this host, by number of workers."""
    mixture, _ = open_mixture(config.run.data).hold_out(config.run.data.validation_fraction)
    tokenizer = _tokenizer(config, mixture)
    mesh = make_mesh(config.run.mesh)
    result: dict[str, Any] = {"source": [source.name for source in mixture.sources], "workers": {}}
    for workers in config.workers:
        loader = Loader(
            mixture,
            tokenizer,
            dataclasses.replace(config.run.data, workers=workers),
            config.run.seed,
            batch_size_at=lambda step: config.run.training.batch_size,
            rows_of=functools.partial(placing.local_rows, mesh),
        )
        loader.start()
        try:
            speeds = _loader_speeds(config, loader)
        finally:
            loader.close()
        result["workers"][str(workers)] = speeds
        say(
            config,
            f"{workers} workers: {speeds['median']:,.0f} tokens/s (turns {speeds['least']:,.0f}–{speeds['most']:,.0f})",
        )
    return result


def _tokenizer(config: BenchmarkConfig, mixture: Mixture) -> Tokenizer:
    def trained() -> Tokenizer:
        say(config, f"training a tokenizer of {config.run.model.vocab_size} pieces")
        return train_tokenizer(mixture.texts(mixture.bad_records(config.run.data)), config.run.model.vocab_size)

    # No model reads the ids, so that any number of tokens will do.
    return mixture.tokenizer(config.run.data.tokenizer, sys.maxsize, trained)


def _loader_speeds(config: BenchmarkConfig, loader: Loader) -> dict[str, Any]:
    # The queue is full and every stream is open after so many batches.
    batches = config.run.data.prefetch_batches + -(-config.run.data.streams // config.run.training.batch_size)
    for _ in range(batches):
        next(loader)
    speeds = []
    for _ in range(config.turns):
        tokens, started, passed = 0, time.perf_counter(), 0.0
        while passed < config.seconds:
            rows, _ = next(loader)
            tokens += rows["tokens"].size
            passed = time.perf_counter() - started
        speeds.append(tokens / passed)
    return turns.summary(speeds)
