"""One supervised run from its first step, or its newest checkpoint, to its last: restores, trains, records, saves.

Knows nothing of what is trained on what: a command says that in a `Task`."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import VALIDATION, best_step, delete_after, validation_loss
from llama_jax.checkpoints.steps.restoring import Restored, restore
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import Batch as AnyBatch
from llama_jax.core.distributed import JobStopSignal, gathered, is_main_process
from llama_jax.core.errors import SavedAfterSignal, SaveFailedError, UserError
from llama_jax.core.recording.curves import draw_curves
from llama_jax.core.recording.dashboards import TensorBoard, WeightsAndBiases
from llama_jax.core.recording.metrics import JsonLines, read_metrics
from llama_jax.core.recording.metrics import MetricsRecord as Record
from llama_jax.core.recording.profiling import Profiler
from llama_jax.core.recording.terminal import Terminal
from llama_jax.core.run import RunDirectory, load_config
from llama_jax.data.rows.loader import State
from llama_jax.data.rows.streams import Batch
from llama_jax.runs.config import RunConfig
from llama_jax.training.loop import Hooks, fit
from llama_jax.training.program import Program, checkpoint_items, from_checkpoint_items
from llama_jax.training.state import TrainState


@runtime_checkable
class Data(Protocol):
    """Batches without end, from a position on: `data.rows.loader.Loader`, `data.instructions.loader.ExampleLoader`."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides the batches."""
        ...

    def start(self, state: State | None = None) -> Iterable[tuple[Batch, State]]:
        """Batches after the one that `state` was given with."""
        ...

    def close(self) -> None:
        """Stop preparing batches."""
        ...

    def merged(self, states: Sequence[State]) -> State:
        """One state from those of all processes after the same batch."""
        ...

    def progress_record(self, state: State) -> Record:
        """What a merged state tells: epochs, and what was dropped."""
        ...


@dataclass(frozen=True)
class Task:
    """What a command gives to `train`."""

    program: Program
    data: Data
    fresh: Callable[[], tuple[TrainState, PyTree]]
    """State and frozen parameters of a run that begins."""
    evaluate: Callable[[TrainState, PyTree], Record]
    """Held-out metrics, `validation_loss` among them."""
    files: Mapping[str, bytes]
    """Saved with each checkpoint, by path: `model/config.json`, the tokenizer."""
    hashes: Mapping[str, str]
    """Kept in the manifest, beside those of configuration and pipeline."""
    opening: Callable[[int, TrainState, PyTree], None] = lambda step, state, frozen: None
    """Called with the step that the run goes on from, before the next one is made."""
    item: str = "params"
    """Name of the checkpoint item with the parameters."""
    kept: Callable[[str], bool] = lambda path: True
    """Which frozen parameters are saved with those that train, by path."""
    elsewhere: PyTree = field(default_factory=dict)
    """The frozen parameters that are not."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    stopped: bool
    """By a signal, before the last step."""


def train(config: RunConfig, run: RunDirectory, task: Task) -> Outcome | None:
    """Train until the last step or a signal; called under `jax.set_mesh(task.program.mesh)`.

    Returns:
        None where the run had ended before.

    Raises:
        UserError: the run cannot go on with this configuration or these data.
        SaveFailedError: the last checkpoint could not be saved.
    """
    program, data = task.program, task.data
    with JobStopSignal() as signal:
        state, frozen, position = _initial_state(config, run, task)
        first = int(state.batches)
        if first == config.training.steps:
            run.say(f"{run.path} is already at step {first}; ask for more with --training.steps")
            return None
        if first:
            run.say(f"going on from step {first}")
        checkpoints = Checkpoints(run.checkpoints, config.checkpoints, say=run.say)
        if is_main_process():
            checkpoints.clean_up()
        hashes = dict(task.hashes)
        hashes |= {"config": hashlib.sha256(task.files["model/config.json"]).hexdigest(), "pipeline": data.fingerprint}
        task.opening(first, state, frozen)
        consumed = _Consumed(data)
        best = _Best(config.checkpoints, run)
        profiler = Profiler(run.profile, config.tracking)

        def save(state: TrainState, frozen: PyTree, position: State, record: Record) -> None:
            contents = {f"data/position-{jax.process_index():05}-of-{jax.process_count():05}.json": position}
            if is_main_process() and "validation_loss" in record:
                contents[VALIDATION] = {"validation_loss": record["validation_loss"]}
            files = {name: json.dumps(content).encode() for name, content in contents.items()}
            shared = task.files if is_main_process() else {}
            items = checkpoint_items(state, frozen, task.item, task.kept)
            checkpoints.save(int(record["step"]), items, {**shared, **files}, hashes)

        with _Recorder(config, run, first) as record:
            hooks = Hooks(
                record=record,
                evaluate=lambda state, frozen: task.evaluate(state, frozen) | consumed.record(),
                worth_keeping=best.is_improved_by,
                save=save,
                stop=signal.requested,
                trace=profiler.step,
            )
            run.say("compiling… (the first step may take minutes on large models)")
            batches = consumed.noted(data.start(position))
            try:
                tokens = (position or {}).get("tokens", program.tokens_until(first))
                placed = _placed(program, batches)
                state, stopped = fit(program, state, frozen, placed, hooks, config.checkpoints.every, tokens)
            finally:
                data.close()
                profiler.close()
                checkpoints.close()  # an error of the data is no reason to lose a save that is under way
            checkpoints.wait()
        if int(state.batches) not in checkpoints.steps():
            raise SaveFailedError(f"step {int(state.batches)}, the last, could not be saved; see above")
    if is_main_process():
        draw_curves(read_metrics(run.metrics), run.curves)
        if config.checkpoints.keep_best and (step := best_step(run.checkpoints)) is not None:
            loss = validation_loss(run.checkpoints, step)
            run.say(f"lowest validation loss: {loss:.4f} at step {step} (--step best uses that checkpoint)")
    return Outcome(int(state.batches), stopped)


def raise_if_stopped(outcome: Outcome, config: RunConfig) -> None:
    """Raise `SavedAfterSignal` for a run that a signal has ended."""
    if outcome.stopped:
        raise SavedAfterSignal(
            f"saved step {outcome.step} of {config.training.steps} after a signal; the same command goes on"
        )


_Config = TypeVar("_Config", bound=RunConfig)


def with_schedule(config: _Config) -> _Config:
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


def _initial_state(config: RunConfig, run: RunDirectory, task: Task) -> tuple[TrainState, PyTree, State | None]:
    """State, frozen parameters and data position of the newest checkpoint that verifies, or fresh ones.

    Raises:
        UserError: the checkpoint does not fit the model or the data.
    """
    restored: Restored | None = None
    program = task.program
    if config.resume != "never":
        step = None if config.resume == "auto" else config.resume
        targets = checkpoint_items(program.state_shapes, program.frozen_shapes, task.item, task.kept)
        restored = restore(run.checkpoints, targets, files=("data",), step=step, say=run.say)
        if restored is not None and step is not None and is_main_process():
            for dropped in delete_after(run.checkpoints, step):
                run.say(f"--resume {step}: checkpoint step {dropped} dropped")
    if restored is None:
        return *task.fresh(), None
    known = restored.manifest.hashes
    if known["pipeline"] != task.data.fingerprint:
        raise UserError(
            f"--run_dir {run.path}: the documents or the tokenizer are not those the run began with; restore them, or "
            "choose another --run_dir"
        )
    if restored.step > config.training.steps:
        raise UserError(f"training.steps: {config.training.steps}, but {run.path} is already at step {restored.step}")
    position = task.data.merged([json.loads(content) for content in restored.files.values()])
    state, frozen = from_checkpoint_items(restored.items, program.state_shapes, task.elsewhere, task.item)
    return state, frozen, position


def _placed(program: Program, batches: Iterable[tuple[Batch, State]]) -> Iterator[tuple[AnyBatch, State]]:
    """The loader's batches on the mesh."""
    for rows, position in batches:
        size = program.config.batch_size_at(position["step"] - 1)
        yield program.place_batch(rows, size), position


class _Consumed:
    """What training has read so far, as of the batch that was handed out last."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._state: State = {}

    def noted(self, batches: Iterable[tuple[Batch, State]]) -> Iterator[tuple[Batch, State]]:
        for rows, self._state in batches:
            yield rows, self._state

    def record(self) -> Record:
        """Over all processes, all of which call this together."""
        states = [json.loads(content) for content in gathered(json.dumps(self._state).encode())]
        return self._data.progress_record(self._data.merged(states))


class _Best:
    """The lowest validation loss so far, where that decides what is saved."""

    def __init__(self, config: CheckpointConfig, run: RunDirectory) -> None:
        self._asked = config.keep_best
        step = best_step(run.checkpoints) if self._asked else None
        self._loss = None if step is None else validation_loss(run.checkpoints, step)

    def is_improved_by(self, record: Record) -> bool:
        loss = record.get("validation_loss")
        if not self._asked or loss is None or (self._loss is not None and not loss < self._loss):
            return False
        self._loss = loss
        return True


class _Recorder:
    """Sends each record to every sink, on the main process; a context manager that gives the function to call."""

    def __init__(self, config: RunConfig, run: RunDirectory, first: int) -> None:
        self._sinks = []
        if is_main_process():
            self._sinks = [
                JsonLines(run.metrics, first),
                Terminal(config.training.steps, config.tracking.log_every, run.say),
            ]
            if config.tracking.tensorboard:
                self._sinks.append(TensorBoard(run.tensorboard, first, run.say))
            if config.tracking.wandb:
                self._sinks.append(WeightsAndBiases(run.path, config.tracking.wandb, dataclasses.asdict(config)))

    def __enter__(self) -> Callable[[Record], None]:
        return self._write

    def _write(self, record: Record) -> None:
        for sink in self._sinks:
            sink.write(record)

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()
