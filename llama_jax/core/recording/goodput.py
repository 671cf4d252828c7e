"""Where the wall time of a run goes, over all of its lives. Does not know what is trained."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.recording.terminal import duration

_MADE, _LOST = "productive", "replayed"
_COMPILING = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")


class Goodput:
    """Counts every second since a run first began under one cause.

    `productive` is the time of steps that are part of the run, less what else is counted of it: `compile`, `data_wait`,
    `evaluation`, `saving`. `replayed` is that of steps which were made and lost, as the run went on from an older
    checkpoint; `starting` and `restore` lie before the first step of a life, and `down` between the last record of a
    life and the start of the next. What a life did that recorded no step is `down` too: nothing on disk knows of it.
    """

    def __init__(self, records: Sequence[MetricsRecord], opened: float) -> None:
        """Begin a life.

        Args:
            records: those that the lives before have left.
            opened: Unix time at which this one began.
        """
        self._cause = "starting"
        self._seconds = defaultdict[str, float](float)
        known = [record for record in records if "wall_seconds" in record]
        if known:
            self._seconds.update(known[-1]["wall_seconds"])
            self._seconds["down"] += max(0.0, opened - known[-1]["time"])
        self._counted_until = time.monotonic() - max(0.0, time.time() - opened)
        self._compiled: list[tuple[float, float]] = []

    def go_on_from(self, step: int, records: Sequence[MetricsRecord]) -> None:
        """Count steps after the given one as lost, which are to be made again.

        Args:
            records: those of the run, the lost ones among them.
        """
        kept = [record["wall_seconds"] for record in records if record["step"] <= step and "wall_seconds" in record]
        lost = self._seconds[_MADE] - (kept[-1].get(_MADE, 0.0) if kept else 0.0)
        self._seconds[_MADE] -= lost
        self._seconds[_LOST] += lost

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Count the time within as that of steps, but for what is said to be spent otherwise, and for compiling."""
        jax.monitoring.register_event_duration_secs_listener(self._note_compilation)
        try:
            with self.spending(_MADE):
                yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self._note_compilation)

    @contextlib.contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Count the time within under a cause."""
        before = self._count(cause)
        try:
            yield
        finally:
            self._count(before)

    def spent(self, cause: str, seconds: float) -> None:
        """Count seconds that have passed under a cause, instead of under that which they are counted as."""
        self._seconds[self._cause] -= seconds
        self._seconds[cause] += seconds

    def record(self) -> MetricsRecord:
        """`goodput`, the share of productive seconds since the run first began, `wall_seconds` by cause, and the Unix
        `time`, from which the next life will know how long the run was down."""
        self._count(self._cause)
        seconds = {cause: round(spent, 3) for cause, spent in self._seconds.items() if round(spent, 3)}
        return {"goodput": self._share(_MADE), "wall_seconds": seconds, "time": round(time.time(), 3)}

    def summary(self) -> str:
        """The same in a line for people."""
        self._count(self._cause)
        others = sorted((cause for cause in self._seconds if cause != _MADE), key=self._share, reverse=True)
        shown = [cause for cause in others if self._share(cause) >= 0.001]
        parts = "".join(f", {cause.replace('_', ' ')} {self._share(cause):.1%}" for cause in shown)
        whole = duration(sum(self._seconds.values()))
        return f"goodput: {self._share(_MADE):.1%} of {whole} went into steps that are part of the run{parts}"

    def _share(self, cause: str) -> float:
        return self._seconds[cause] / max(sum(self._seconds.values()), 1e-9)

    def _count(self, cause: str) -> str:
        """Count what has passed, and what comes under a cause; returns that of before."""
        now, before = time.monotonic(), self._cause
        self._seconds[before] += now - self._counted_until
        self._counted_until, self._cause = now, cause
        return before

    def _note_compilation(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.rpartition("/")[2] not in _COMPILING:
            return
        began, inside = time.monotonic() - duration_secs, 0.0
        # What is traced within a trace was said before, by itself.
        while self._compiled and self._compiled[-1][0] >= began:
            inside += self._compiled.pop()[1]
        self._compiled.append((began, duration_secs))
        self.spent("compile", duration_secs - inside)
