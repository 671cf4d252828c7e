"""The runner that the settings ask for."""

import functools
import os
from collections.abc import Callable

from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job, Runner
from llama_jax.data.preparation.runners.beam import BeamRunner
from llama_jax.data.preparation.runners.beam_options import beam_options
from llama_jax.data.preparation.runners.local import LocalRunner


def runner_of(config: PrepareConfig) -> Callable[[Job], Runner]:
    """What makes the runner for a job.

    Raises:
        UserError: Beam is not installed, or its options are wrong.
    """
    if config.runner == "beam":
        return functools.partial(BeamRunner, options=beam_options(config.beam, config.workers))
    return functools.partial(_local_runner, config.workers)


def _local_runner(workers: int | None, job: Job) -> Runner:
    if workers is None:
        # One process more would start up for longer than it takes to write a single shard.
        workers = 0 if job.shards == 1 else os.cpu_count() or 1
    return LocalRunner(job, workers)
