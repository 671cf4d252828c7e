"""The one loop of supervised training: read a batch, make a step, record, evaluate, save."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import Batch
from llama_jax.core.recording.metrics import MetricsRecord
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


class _Steps:
    """Turns device metrics of finished steps into records. Reading them waits for the device, so the loop does it for
    the previous step once the next one is under way."""

    def __init__(self, program: Program, tokens: int) -> None:
        self._program = program
        self._tokens = tokens
        self._finished = time.perf_counter()
        self._data_wait_seconds = 0.0

    def waited(self, seconds: float) -> None:
        """Add to what the next record says of waiting for data: that which was within its `step_seconds`."""
        self._data_wait_seconds += seconds

    def restart_clock(self) -> None:
        """Leave the time since the last record out of the next step's."""
        self._finished = time.perf_counter()

    def record(self, step: int, new_tokens: int, metrics: Metrics) -> MetricsRecord:
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._finished = now - self._finished, now
        self._tokens += new_tokens
        speed = self._program.rates(new_tokens, seconds)
        timing = {"step_seconds": seconds, **speed, "data_wait_seconds": self._data_wait_seconds}
        self._data_wait_seconds = 0.0
        return {"step": step, "loss": values.pop("loss"), "tokens": self._tokens, **values, **timing}


def fit(
    program: Program,
    state: TrainState,
    frozen: PyTree,
    data: Iterator[tuple[Batch, Any]],
    hooks: Hooks,
    save_every: int,
    tokens: int,
) -> tuple[TrainState, bool]:
    """Train from the state's step to the last; called under `jax.set_mesh(program.mesh)`.

    Args:
        data: batches from the state's step on, each with the position of the data after it.
        save_every: steps between checkpoints.
        tokens: those of the batches before.

    Returns:
        The final state, and whether a signal ended the run early (its checkpoint is then asked for).
    """
    steps = _Steps(program, tokens)
    last = program.config.steps
    unread: tuple[int, int, Metrics] | None = None
    for step in range(int(state.batches) + 1, last + 1):
        hooks.trace(step)
        asked = time.perf_counter()
        batch, position = next(data)
        steps.waited(time.perf_counter() - asked)
        state, metrics = program.step(state, frozen, batch)
        if unread is not None:
            hooks.record(steps.record(*unread))
        unread = (step, batch.token_count, metrics)
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
