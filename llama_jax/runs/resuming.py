"""The run directory of a configuration: opening it, what it says of a run that has begun, and the step to resume."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from llama_jax.checkpoints.steps.restoring import Restored, restore
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import is_main_process, job_peers
from llama_jax.core.processes.watchdog import Watchdog
from llama_jax.core.run_directory import RunDirectory, load_config, open_run
from llama_jax.runs.config import FREE_ON_RESUME, RunConfig
from llama_jax.runs.history import History

AnyRunConfig = TypeVar("AnyRunConfig", bound=RunConfig)


@contextlib.contextmanager
def opened_run(config: RunConfig, command: str, free: Collection[str] = FREE_ON_RESUME) -> Iterator[RunDirectory]:
    """Open the run of a configuration, new or to be resumed, in a `with` block, in which a watchdog watches this
    process. Every process calls this.

    Args:
        command: that reads such a configuration.
        free: settings that may differ from those of the run.

    Raises:
        UserError: see `open_run`.
    """
    opened = open_run(
        config.run_dir,
        config,
        command=command,
        free=free,
        resume=config.resume,
        is_main_process=is_main_process(),
    )
    heartbeat_seconds = config.distributed.heartbeat_seconds
    with opened as run, Watchdog(config.supervise, heartbeat_seconds, job_peers(), run.faults):
        yield run


def with_schedule(config: AnyRunConfig) -> AnyRunConfig:
    """The config with the end of the schedule spelled out: that of the run, if it has begun, else the last step."""
    training = config.training
    if training.schedule_steps is None:
        training = dataclasses.replace(training, schedule_steps=begun_schedule(config.run_dir) or training.steps)
        if training.schedule_steps != training.steps and is_main_process():
            print(f"the learning-rate schedule still ends at step {training.schedule_steps}, as the run began")
    return dataclasses.replace(config, training=training)


def begun_schedule(run_dir: str) -> int | None:
    """Where the schedule ends of a run that has begun; None for one that has not."""
    steps = begun_config(run_dir).get("training", {}).get("schedule_steps")
    return steps if isinstance(steps, int) else None


def begun_config(run_dir: str) -> dict[str, Any]:
    """The configuration of a run that has begun; nothing for one that has not."""
    run = RunDirectory(run_dir)
    return load_config(run_dir) if run.config_path.exists() and run.has_progress() else {}


def restore_step(
    config: RunConfig, run: RunDirectory, targets: Mapping[str, PyTree], pipeline: str, history: History
) -> Restored | None:
    """The trees of the step that `config.resume` asks for, by default the newest that verifies, and the plain files of
    that step: the data positions of all processes, and what describes the model. Nothing is removed or written.
    Where the run goes back, the step is the newest of those that `history` leaves.

    Args:
        targets: shapes of the trees, by item.
        pipeline: fingerprint of the data, which must be that of the checkpoint.

    Returns:
        None for a run without checkpoints.

    Raises:
        UserError: the checkpoint does not fit the targets, the data or `training.steps`.
    """
    with history.goodput.spending("restore"):
        restored = restore(
            run.checkpoints, targets, files=("data", "model"), step=history.step, last=history.newest, say=run.say
        )
    history.resumed(0 if restored is None else restored.step)
    if restored is None:
        return None
    if restored.manifest.hashes["pipeline"] != pipeline:
        raise UserError(
            f"--run_dir {run.path}: the documents or the tokenizer are not those the run began with; restore them, or "
            "choose another --run_dir"
        )
    if restored.step > config.training.steps:
        raise UserError(f"training.steps: {config.training.steps}, but {run.path} is already at step {restored.step}")
    return restored
