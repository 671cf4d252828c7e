"""Where a run begins: at the newest checkpoint that verifies, or afresh."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from llama_jax.checkpoints.steps.folders import delete_after
from llama_jax.checkpoints.steps.restoring import Restored, restore
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.core.run import RunDirectory
from llama_jax.runs.config import RunConfig
from llama_jax.runs.task import Position, Task
from llama_jax.training.program import checkpoint_items, from_checkpoint_items
from llama_jax.training.state import TrainState


@dataclass(frozen=True)
class Start:
    """What training begins with."""

    step: int
    """Steps made before."""
    state: TrainState
    frozen: PyTree
    position: Position | None
    """Of the data; None: at their beginning."""


def begin_or_resume(config: RunConfig, run: RunDirectory, task: Task) -> Start:
    """The state, frozen parameters and data position of the checkpoint to resume from, or fresh ones.

    Raises:
        UserError: the checkpoint does not fit the model or the data.
    """
    program = task.program
    targets = checkpoint_items(program.state_shapes, program.frozen_shapes, task.params_item, task.is_saved)
    restored = restore_step(config, run, targets, task.data.fingerprint)
    if restored is None:
        state, frozen = task.fresh()
        return Start(0, state, frozen, None)
    position = task.data.position_of([json.loads(content) for content in restored.files.values()])
    state, frozen = from_checkpoint_items(restored.items, program.state_shapes, task.unsaved_params, task.params_item)
    return Start(restored.step, state, frozen, position)


def restore_step(config: RunConfig, run: RunDirectory, targets: Mapping[str, PyTree], pipeline: str) -> Restored | None:
    """The trees of the step that `config.resume` asks for, by default the newest that verifies, and the files with the
    data positions of all processes. Steps after one that was asked for are removed.

    Args:
        targets: shapes of the trees, by item.
        pipeline: fingerprint of the data, which must be that of the checkpoint.

    Returns:
        None for a run without checkpoints.

    Raises:
        UserError: the checkpoint does not fit the targets, the data or `training.steps`.
    """
    if config.resume == "never":
        return None
    step = None if config.resume == "auto" else config.resume
    restored = restore(run.checkpoints, targets, files=("data",), step=step, say=run.say)
    if restored is None:
        return None
    if step is not None and is_main_process():
        for dropped in delete_after(run.checkpoints, step):
            run.say(f"--resume {step}: checkpoint step {dropped} dropped")
    if restored.manifest.hashes["pipeline"] != pipeline:
        raise UserError(
            f"--run_dir {run.path}: the documents or the tokenizer are not those the run began with; restore them, or "
            "choose another --run_dir"
        )
    if restored.step > config.training.steps:
        raise UserError(f"training.steps: {config.training.steps}, but {run.path} is already at step {restored.step}")
    return restored
