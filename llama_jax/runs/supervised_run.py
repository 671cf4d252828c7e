"""One supervised run from its first step, or its newest checkpoint, to its last.

What is trained on what, a command says in a `Task`. A loop of another kind than `fit` uses `restore_step` and `Life`
as this one does."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import Batch
from llama_jax.core.errors import SavedAfterSignal
from llama_jax.core.processes.distributed import JobStopSignal, gathered
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.rows.streams import Rows
from llama_jax.runs.config import RunConfig
from llama_jax.runs.history import History
from llama_jax.runs.life import Life, summarize
from llama_jax.runs.resuming import restore_step
from llama_jax.training.checkpoint_items import checkpoint_items, from_checkpoint_items
from llama_jax.training.loop import Hooks, fit
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState


@runtime_checkable
class Position(Protocol):
    """Where data stand between two batches, after `row` rows of global batches: `data.rows.positions.RowsPosition`,
    `data.instructions.loader.ExamplesPosition`."""

    @property
    def row(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


@runtime_checkable
class Data(Protocol):
    """Batches without end, from a position on: `data.rows.loader.Loader` or `data.instructions.loader.ExampleLoader`,
    which say what these do."""

    @property
    def fingerprint(self) -> str: ...
    def start(self, position: Any | None = None) -> Iterable[tuple[Rows, Any]]: ...
    def close(self) -> None: ...
    def position_of(self, records: Sequence[Mapping[str, Any]]) -> Any: ...
    def tokens_before(self, position: Any) -> int: ...
    def progress_record(self, position: Any) -> MetricsRecord: ...


@dataclass(frozen=True)
class Task:
    """What a command gives a run: what is trained, on which data, how it begins, how it is measured, what is saved."""

    program: Program
    data: Data
    fresh: Callable[[], tuple[TrainState, PyTree]]
    """State and frozen parameters of a run that begins."""
    evaluate: Callable[[TrainState, PyTree], MetricsRecord]
    """Held-out metrics, `validation_loss` among them."""
    files: Mapping[str, bytes]
    """Saved with each checkpoint, by path: `model/config.json`, the tokenizer."""
    hashes: Mapping[str, str]
    """Kept in the manifest, beside those of configuration and pipeline."""
    measured_files: Callable[[MetricsRecord], Mapping[str, bytes]] = lambda record: {}
    """More files of one checkpoint, from the record of its step."""
    before_training: Callable[[int, TrainState, PyTree], None] = lambda step, state, frozen: None
    """Called with the step that the run resumes from (0: it begins), before the next one is made. Of a run that resumes
    it must write nothing."""
    check_restored: Callable[[Mapping[str, bytes]], None] = lambda files: None
    """Called with the plain files of a checkpoint that the run is to resume from, by path; raises a `UserError` where
    that is not possible."""
    params_item: str = "params"
    """Name of the checkpoint item with the parameters."""
    is_saved: Callable[[str], bool] = lambda path: True
    """Which frozen parameters are saved with those that train, by path."""
    unsaved_params: PyTree = field(default_factory=dict)
    """The frozen parameters that are not."""


def train(config: RunConfig, run: RunDirectory, task: Task) -> bool:
    """Train until the last step or a signal; called under `jax.set_mesh(task.program.mesh)`.

    Returns:
        Whether a step was made; not where the run had ended before.

    Raises:
        UserError: the run cannot be resumed with this configuration or these data.
        SaveFailedError: the last checkpoint could not be saved.
        SavedAfterSignal: a signal ended it before the last step.
        CannotGoOnError: updates were skipped too often, or devices disagree.
    """
    history = History(config, run)
    with (signal := JobStopSignal()):
        first, step, stopped = history.lived(functools.partial(_live, config, run, task, history, signal))
    last = config.training.steps
    if first == last:
        run.say(f"{run.path} is already at step {last}; ask for more with --training.steps")
        return False
    summarize(config, run)
    if stopped:
        raise SavedAfterSignal(f"interrupted: saved step {step} of {last}; run the same command to resume")
    return True


def _live(
    config: RunConfig, run: RunDirectory, task: Task, history: History, signal: JobStopSignal
) -> tuple[int, int, bool]:
    """One life: the step that it begins at, that which it ends at, and whether a signal ended it.

    Raises:
        SkippedTooOftenError: the run is to go back.
    """
    first, state, frozen, position = _begin_or_resume(config, run, task, history)
    if first == config.training.steps:
        return first, first, False
    if first:
        run.say(f"resuming from step {first}")
    with Life(config, run, first, task.files, task.hashes, task.data.fingerprint, history) as life:
        if first == 0:
            life.begin()  # there is no checkpoint to protect
        with history.goodput.spending("evaluation"):
            task.before_training(first, state, frozen)
        run.say("compiling… (the first step may take minutes on large models)")
        batches = PlacedBatches(task, first, position, history.left_out_after, life.has_read)
        hooks, until = _hooks(task, batches, life, signal), task.data.tokens_before
        try:
            state, stopped = fit(task.program, state, frozen, batches, hooks, config.checkpoints.every, until)
        finally:
            task.data.close()
        step = int(state.batches)
        life.finish(step)
    return first, step, stopped


def _begin_or_resume(
    config: RunConfig, run: RunDirectory, task: Task, history: History
) -> tuple[int, TrainState, PyTree, Position | None]:
    """The steps made before, and state, frozen parameters and data position to go on from: those of a checkpoint, or
    fresh ones, with the data at their beginning (None)."""
    program = task.program
    targets = checkpoint_items(program.state_shapes, program.frozen_shapes, task.params_item, task.is_saved)
    restored = restore_step(config, run, targets, task.data.fingerprint, history)
    if restored is None:
        return 0, *task.fresh(), None
    task.check_restored(restored.files)
    positions = [content for name, content in restored.files.items() if name.startswith("data/")]
    position = task.data.position_of([json.loads(content) for content in positions])
    state, frozen = from_checkpoint_items(restored.items, program.state_shapes, task.unsaved_params, task.params_item)
    return restored.step, state, frozen, position


def _hooks(task: Task, batches: "PlacedBatches", life: Life, signal: JobStopSignal) -> Hooks:
    items = functools.partial(checkpoint_items, params_item=task.params_item, is_saved=task.is_saved)

    def evaluate(state: TrainState, frozen: PyTree) -> MetricsRecord:
        with life.evaluating():
            return task.evaluate(state, frozen) | batches.progress_record()

    def save(state: TrainState, frozen: PyTree, position: Position, record: MetricsRecord) -> None:
        life.save(items(state, frozen), position.to_json(), record, task.measured_files(record))

    return Hooks(life.record, evaluate, life.is_best, save, signal.requested, life.before_step)


class PlacedBatches:
    """The batches of a task on its mesh, each with the position of the data after it."""

    def __init__(
        self,
        task: Task,
        step: int,
        position: Position | None,
        left_out_after: Callable[[int], int],
        has_read: Callable[[], None],
    ) -> None:
        """
        Args:
            step: the steps made before.
            position: given with the batch of that step; None: begin with the first batch.
            left_out_after: how many batches are read after a step, and thrown away.
            has_read: called when a batch was read, before it is placed.
        """
        self._task, self._left_out_after, self._has_read = task, left_out_after, has_read
        self._step, self._position = step, position
        self._loaded = iter(task.data.start(position))

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        return self

    def __next__(self) -> tuple[Batch, Position]:
        for _ in range(self._left_out_after(self._step)):
            _, self._position = next(self._loaded)
        rows, position = next(self._loaded)
        self._has_read()
        before = 0 if self._position is None else self._position.row
        self._step, self._position = self._step + 1, position
        return self._task.program.place_batch(rows, position.row - before), position

    def progress_record(self) -> MetricsRecord:
        """What was read up to the batch given last, over all processes, all of which call this together."""
        if self._position is None:
            return {}
        records = [json.loads(content) for content in gathered(json.dumps(self._position.to_json()).encode())]
        return self._task.data.progress_record(self._task.data.position_of(records))
