"""The one loop of supervised training: read a batch, make a step, record, evaluate, save."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import jax

from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import Batch
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.replicas import ReplicaChecks
from llama_jax.objectives.objective import Metrics
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState


@dataclass(frozen=True)
class Hooks:
    """What the loop calls. Each gets numbers or arrays and knows what to do with them; the loop knows when."""

    record: Callable[[MetricsRecord], None]
    """Takes the metrics of a step, each step once and in order."""
    evaluate: Callable[[TrainState, PyTree], MetricsRecord]
    """Gives the metrics of a held-out evaluation."""
    worth_keeping: Callable[[MetricsRecord], bool]
    """Whether a state is to be saved for what its evaluation gave."""
    save: Callable[[TrainState, PyTree, Any, MetricsRecord], None]
    """Takes state, frozen parameters, data position and the record of the step; returns once the arrays may be
    donated."""
    stop: Callable[[int], bool]
    """Whether to save and leave after this step."""
    trace: Callable[[int], None]
    """Called before each step; may start or stop a profiler."""


class _Devices:
    """Knows since when the devices have had nothing to do, without keeping the loop waiting for them."""

    def __init__(self) -> None:
        self._busy: SimpleQueue[tuple[int, Metrics] | None] = SimpleQueue()
        self._given = 0
        self._made = (0, time.perf_counter())
        threading.Thread(target=self._watch, name="step times", daemon=True).start()

    def give(self, metrics: Metrics) -> None:
        """Take note of a step that was given to them, by its metrics."""
        self._given += 1
        self._busy.put((self._given, metrics))

    def idle_seconds(self, since: float) -> float:
        """For how long they have had nothing to do, at most since a moment of `time.perf_counter`."""
        number, at = self._made
        return max(0.0, time.perf_counter() - max(since, at)) if number == self._given else 0.0

    def close(self) -> None:
        self._busy.put(None)

    def _watch(self) -> None:
        while (step := self._busy.get()) is not None:
            with contextlib.suppress(Exception):  # which the loop will meet itself
                jax.block_until_ready(step[1])
            self._made = (step[0], time.perf_counter())


class _Steps:
    """Turns device metrics of finished steps into records. Reading them waits for the device, so the loop does it for
    the previous step once the next one is under way."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._finished = time.perf_counter()
        self._data_wait_seconds = 0.0

    def waited(self, seconds: float) -> None:
        """Add to what the next record says of waiting for data: that which was within its `step_seconds`."""
        self._data_wait_seconds += seconds

    def restart_clock(self) -> None:
        """Leave the time since the last record out of the next step's."""
        self._finished = time.perf_counter()

    def record(self, step: int, tokens: int, tokens_so_far: int, metrics: Metrics) -> MetricsRecord:
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._finished = now - self._finished, now
        speed = self._program.rates(tokens, seconds)
        timing = {"step_seconds": seconds, **speed, "data_wait_seconds": self._data_wait_seconds}
        self._data_wait_seconds = 0.0
        return {"step": step, "loss": values.pop("loss"), "tokens": tokens_so_far, **values, **timing}


def fit(
    program: Program,
    state: TrainState,
    frozen: PyTree,
    data: Iterator[tuple[Batch, Any]],
    hooks: Hooks,
    save_every: int,
    tokens_until: Callable[[Any], int],
) -> tuple[TrainState, bool]:
    """Train from the state's step to the last; called under `jax.set_mesh(program.mesh)`.

    Args:
        data: batches from the state's step on, each with the position of the data after it.
        save_every: steps between checkpoints.
        tokens_until: those of the batches before a position.

    Returns:
        The final state, and whether a signal ended the run early (its checkpoint is then asked for).

    Raises:
        ReplicasDifferError: see `training.fingerprint_every`.
    """
    steps, devices = _Steps(program), _Devices()
    first, last = int(state.batches), program.config.steps
    checks = ReplicaChecks(program.config.fingerprint_every, first)
    unread: tuple[int, int, int, Metrics] | None = None
    with contextlib.closing(devices):
        for step in range(first + 1, last + 1):
            hooks.trace(step)
            asked = time.perf_counter()
            batch, position = next(data)
            steps.waited(devices.idle_seconds(since=asked))
            state, metrics = program.step(state, frozen, batch)
            devices.give(metrics)
            if unread is not None:
                hooks.record(steps.record(*unread))
            unread = (step, batch.token_count, tokens_until(position), metrics)
            checks.after(step, {"state": state, "frozen": frozen})
            stopping = step < last and hooks.stop(step)
            # The seconds that are left after a signal are for saving.
            evaluating = step == last or (step % program.config.evaluate_every == 0 and not stopping)
            saving = step == last or stopping or step % save_every == 0
            if evaluating or saving:
                record = steps.record(*unread)
                unread = None
                if evaluating:
                    record |= hooks.evaluate(state, frozen)
                # Recorded before it is saved: a step is in the metrics of every run that resumes behind it.
                hooks.record(record)
                if saving or (evaluating and hooks.worth_keeping(record)):
                    hooks.save(state, frozen, position, record)
                steps.restart_clock()
            if stopping:
                return state, True
    return state, False
