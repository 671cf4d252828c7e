"""One life of a run, from the step it begins at to its end, a signal or a fault: what a loop calls while it trains."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from llama_jax.checkpoints.steps.folders import VALIDATION, best_step, delete_after, validation_loss
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import SaveFailedError
from llama_jax.core.processes import watchdog
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.core.recording.curves import draw_curves
from llama_jax.core.recording.dashboards import TensorBoard, WeightsAndBiases
from llama_jax.core.recording.metrics import JsonLines, MetricsRecord, Sink, read_metrics
from llama_jax.core.recording.profiling import Profiler
from llama_jax.core.recording.terminal import Terminal
from llama_jax.core.run_directory import RunDirectory
from llama_jax.runs.config import RunConfig
from llama_jax.runs.history import History, SkippedTooOftenError


class Life:
    """Records, saves (in the background, see `Checkpoints`) and profiles the steps of a run. A context manager, which
    all processes enter at the same step and call alike. Before `begin`, which the first record or evaluation calls,
    nothing is written or removed.

    Args:
        first: steps made before; what an earlier life recorded of later ones is dropped.
        files: saved with each checkpoint, by path, `model/config.json` among them.
        hashes: kept in each manifest: of the tokenizer, the base and whatever a reader may want to compare.
        pipeline: fingerprint of the data.
        history: of the run, to which this life is added.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        first: int,
        files: Mapping[str, bytes],
        hashes: Mapping[str, str],
        pipeline: str,
        history: History,
    ) -> None:
        self._config, self._run, self._first, self._history = config, run, first, history
        self._step, self._is_compiled = first, False
        self._open = contextlib.ExitStack()
        self._has_begun = False
        of_config = hashlib.sha256(files["model/config.json"]).hexdigest()
        self._files = files if is_main_process() else {}
        self._hashes = {**hashes, "config": of_config, "pipeline": pipeline}
        self._checkpoints = Checkpoints(run.checkpoints, config.checkpoints, say=run.say)
        self._keeps_best = config.checkpoints.keep_best
        # Of later steps none is part of this life: process 0 may be removing them while others look.
        step = best_step(run.checkpoints, first) if self._keeps_best else None
        self._lowest = None if step is None else validation_loss(run.checkpoints, step)
        self._sinks: list[Sink] = []
        if config.tracking.wandb and is_main_process():  # which may refuse
            self._sinks.append(WeightsAndBiases(run.path, config.tracking.wandb, dataclasses.asdict(config)))
        self._profiler = Profiler(run.profile, config.tracking)

    def begin(self) -> None:
        """Take the directory over, once it is known that the run goes on: a resumed one has made a step by then. Drops
        checkpoints after the step that was asked for, and records of later ones. May be called again."""
        if self._has_begun or not is_main_process():
            return
        self._has_begun = True
        config, run, first = self._config, self._run, self._first
        run.begin()
        if first:
            run.say(f"going on from step {first}")
        # The newest first, and before their records: wherever this is interrupted, what is left can be resumed.
        if why := self._history.goes_back:
            for step in delete_after(run.checkpoints, first):
                run.say(f"{why}: checkpoint step {step} dropped")
            self._history.begin()
        self._checkpoints.clean_up()
        terminal = Terminal(config.training.steps, config.tracking.log_every, run.say)
        self._sinks += [JsonLines(run.metrics, first), terminal]
        if config.tracking.tensorboard:
            self._sinks.append(TensorBoard(run.tensorboard, first, run.say))

    def __enter__(self) -> "Life":
        self._open.enter_context(self._history.goodput.training())
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, SkippedTooOftenError):  # which all processes raise
            watchdog.raised(error)  # a save that is under way would wait for a process that is gone
        watchdog.mark("closing the run")
        self._open.close()
        self._profiler.close()
        with self._history.goodput.spending("saving"):
            self._checkpoints.close()  # an error of the data is no reason to lose a save that is under way
        for sink in self._sinks:
            sink.close()

    def before_step(self, step: int) -> None:
        """To be called before each step."""
        self._profiler.step(step)
        self._step = step
        compiled = max(self._first, *(start for start, _ in self._config.training.stages if start < step))
        self._is_compiled = step > compiled + 2
        watchdog.mark(f"step {step}", is_step=self._is_compiled)

    def has_read(self) -> None:
        """To be called in each step between what each process does by itself and what they do together."""
        watchdog.mark(f"step {self._step}, computing", is_step=self._is_compiled)

    def record(self, record: MetricsRecord) -> None:
        """Write down a step; each once and in order, and before it is saved.

        Raises:
            SkippedTooOftenError: the run is to go back.
        """
        self.begin()
        record = self._history.record(record)
        for sink in self._sinks:
            sink.write(record)
        self._history.check_skipped(record)

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Within, time is that of an evaluation, which may write files of the run."""
        self.begin()
        watchdog.mark(f"step {self._step}, evaluating")
        return self._history.goodput.spending("evaluation")

    def save(
        self,
        items: Mapping[str, PyTree],
        position: Mapping[str, Any],
        record: MetricsRecord,
        measured: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Save a step. Returns when its arrays may be donated.

        Args:
            items: trees of arrays.
            position: of the data of this process, after this step, as JSON.
            record: of the step, with its `validation_loss` if it was evaluated.
            measured: files of this checkpoint alone, by path.

        Raises:
            SaveFailedError: too many saves in a row have failed.
        """
        step = int(record["step"])
        watchdog.mark(f"step {step}, saving")
        contents = {f"data/position-{jax.process_index():05}-of-{jax.process_count():05}.json": position}
        if is_main_process() and "validation_loss" in record:
            contents[VALIDATION] = {"validation_loss": record["validation_loss"]}
        files = {name: json.dumps(content).encode() for name, content in contents.items()}
        own = measured if is_main_process() else {}
        with self._history.goodput.spending("saving"):
            self._checkpoints.save(step, items, {**self._files, **own, **files}, self._hashes)

    def is_best(self, record: MetricsRecord) -> bool:
        """Whether the step of a record is to be saved because its validation loss is the lowest so far."""
        loss = record.get("validation_loss")
        if not self._keeps_best or loss is None or (self._lowest is not None and not loss < self._lowest):
            return False
        self._lowest = loss
        return True

    def finish(self, step: int) -> None:
        """Wait for a save that is under way, and say where the time of the run went.

        Raises:
            SaveFailedError: the step, the last, is not there.
        """
        watchdog.mark(f"step {step}, saving")
        with self._history.goodput.spending("saving"):
            self._checkpoints.wait()
        if step not in self._checkpoints.steps():
            raise SaveFailedError(f"step {step}, the last, could not be saved; see above")
        self._run.say(self._history.goodput.summary())


def summarize(config: RunConfig, run: RunDirectory) -> None:
    """Draw the curves of a run that has ended, and say which step is the best."""
    if not is_main_process():
        return
    draw_curves(read_metrics(run.metrics), run.curves)
    if config.checkpoints.keep_best and (step := best_step(run.checkpoints)) is not None:
        loss = validation_loss(run.checkpoints, step)
        run.say(f"lowest validation loss: {loss:.4f} at step {step} (--step best uses that checkpoint)")
