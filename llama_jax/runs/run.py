"""One supervised run from its first step, or its newest checkpoint, to its last.

What is trained on what, a command says in a `Task`. A loop of another kind than `fit` uses `restoring` and `life` as
this one does."""

import functools
import json
from collections.abc import Iterator

from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import Batch
from llama_jax.core.errors import SavedAfterSignal
from llama_jax.core.processes.distributed import JobStopSignal, gathered
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run import RunDirectory
from llama_jax.runs.config import RunConfig
from llama_jax.runs.life import Life
from llama_jax.runs.recording import summarize
from llama_jax.runs.restoring import Start, begin_or_resume
from llama_jax.runs.task import Position, Task
from llama_jax.training.loop import Hooks, fit
from llama_jax.training.program import checkpoint_items
from llama_jax.training.state import TrainState


def train(config: RunConfig, run: RunDirectory, task: Task) -> bool:
    """Train until the last step or a signal; called under `jax.set_mesh(task.program.mesh)`.

    Returns:
        Whether a step was made; not where the run had ended before.

    Raises:
        UserError: the run cannot be resumed with this configuration or these data.
        SaveFailedError: the last checkpoint could not be saved.
        SavedAfterSignal: a signal ended it before the last step.
    """
    last, signal = config.training.steps, JobStopSignal()
    with signal:
        start = begin_or_resume(config, run, task)
        if start.step == last:
            run.say(f"{run.path} is already at step {last}; ask for more with --training.steps")
            return False
        if start.step:
            run.say(f"resuming from step {start.step}")
        with Life(config, run, start.step, task.files, task.hashes, task.data.fingerprint, signal) as life:
            task.before_training(start.step, start.state, start.frozen)
            run.say("compiling… (the first step may take minutes on large models)")
            state, stopped = _fit(config, task, start, life)
            step = int(state.batches)
            life.finish(step)
    summarize(config, run)
    if stopped:
        raise SavedAfterSignal(f"interrupted: saved step {step} of {last}; run the same command to resume")
    return True


def _fit(config: RunConfig, task: Task, start: Start, life: Life) -> tuple[TrainState, bool]:
    """The loop over the data of a task."""
    batches = PlacedBatches(task, start.position)
    items = functools.partial(checkpoint_items, params_item=task.params_item, is_saved=task.is_saved)

    def evaluate(state: TrainState, frozen: PyTree) -> MetricsRecord:
        return task.evaluate(state, frozen) | batches.progress_record()

    def save(state: TrainState, frozen: PyTree, position: Position, record: MetricsRecord) -> None:
        life.save(items(state, frozen), position, record)

    hooks = Hooks(life.record, evaluate, life.is_best, save, life.stop_requested, life.trace)
    tokens = 0 if start.position is None else task.data.tokens_before(start.position)
    try:
        return fit(task.program, start.state, start.frozen, batches, hooks, config.checkpoints.every, tokens)
    finally:
        task.data.close()


class PlacedBatches:
    """The batches of a task on its mesh, each with the position of the data after it."""

    def __init__(self, task: Task, position: Position | None) -> None:
        """Begin after the batch that a position was given with; None: with the first."""
        self._task = task
        self._position = position
        self._loaded = iter(task.data.start(position))

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        return self

    def __next__(self) -> tuple[Batch, Position]:
        rows, position = next(self._loaded)
        before = 0 if self._position is None else self._position.row
        self._position = position
        return self._task.program.place_batch(rows, position.row - before), position

    def progress_record(self) -> MetricsRecord:
        """What was read up to the batch given last, over all processes, all of which call this together."""
        if self._position is None:
            return {}
        records = [json.loads(content) for content in gathered(json.dumps(self._position.to_json()).encode())]
        return self._task.data.progress_record(self._task.data.position_of(records))
