"""What the directory of a run knows of its lives so far: where their time went, how many updates were skipped of late,
and where the run went back. It goes back where too many are skipped, as PaLM did (arXiv:2204.02311, section 5.1)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from llama_jax.checkpoints.steps.folders import acknowledged_steps
from llama_jax.checkpoints.steps.restoring import from_first
from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.files import write_whole
from llama_jax.core.json_files import json_bytes, json_object
from llama_jax.core.processes.distributed import from_main_process, is_main_process
from llama_jax.core.recording.goodput import Goodput
from llama_jax.core.recording.metrics import MetricsRecord, read_metrics
from llama_jax.core.run_directory import RunDirectory
from llama_jax.runs.config import RunConfig

_SKIPPED = ("skipped_updates", "critic_skipped_updates")
_NOTHING = json_bytes({"back_to": None, "rollbacks": []})
_T = TypeVar("_T")


class SkippedTooOftenError(Exception):
    """So many updates were skipped that the run goes back."""

    def __init__(self, first: int, step: int, count: int) -> None:
        """
        Args:
            first: step of the first of them.
            step: that of the last.
            count: how many they are.
        """
        super().__init__(f"step {step}: {count} updates were skipped from step {first} on")
        self.first, self.step, self.count = first, step, count


@dataclass(frozen=True)
class Rollback:
    """A time that the run went back. Kept as JSON, so the names must not change."""

    after: int
    """The step after which batches are left out."""
    batches: int
    """How many."""
    found: int
    """The step that the run had come to."""


class History:
    """Of one run, for one process of it. All processes make and change it alike."""

    def __init__(self, config: RunConfig, run: RunDirectory) -> None:
        """Read what earlier lives have left."""
        self._config, self._run = config.training.rollback, run
        # By one process for all: they must decide alike, and file systems may show them different things.
        content = from_main_process(lambda: run.rollbacks.read_bytes() if run.rollbacks.exists() else _NOTHING)
        kept = json_object(content, str(run.rollbacks))
        self._rollbacks = [Rollback(**each) for each in kept["rollbacks"]]
        self._skipped: dict[int, int] = {}
        self._records = read_metrics(run.metrics)
        self.goodput = Goodput(self._records, run.opened)
        asked = config.resume if isinstance(config.resume, int) else None
        self.step = asked
        """The checkpoint to restore; None: the newest that verifies."""
        self.newest: int | None = kept["back_to"] if asked is None else None
        """The newest of which that may be; None: the newest that there is."""

    @property
    def goes_back(self) -> str:
        """Why checkpoints after the restored one are dropped; nothing where they are not."""
        if self.step is not None:
            return f"--resume {self.step}"
        return "" if self.newest is None else "rollback"

    def lived(self, live: Callable[[], _T]) -> _T:
        """What `live` gives, which is called again where it raises that updates were skipped too often.

        Raises:
            CannotGoOnError: they were so again, after as many rollbacks as there may be.
        """
        while True:
            try:
                return live()
            except SkippedTooOftenError as skipped:
                self._go_back(skipped)

    def resumed(self, step: int) -> None:
        """Take note that the run goes on from a step."""
        self.goodput.go_on_from(step, self._records)
        start = self._window_start(step)
        of_window = [each for each in self._records if start <= each["step"] <= step]
        known = [(each["step"], _skipped(each)) for each in of_window] if step else [(0, 0)]
        numbers = from_first([number for pair in known for number in pair])
        self._skipped = dict(zip(numbers[::2], numbers[1::2], strict=True))
        self._records = []  # there may be a million

    def begin(self) -> None:
        """Take note that nothing is left of what came after the step that the run has gone back to."""
        if self.goes_back:
            self.step = self.newest = None
            if self._rollbacks:
                self._write()

    def left_out_after(self, step: int) -> int:
        """How many batches are left out after a step."""
        return sum(each.batches for each in self._rollbacks if each.after == step)

    def record(self, record: MetricsRecord) -> MetricsRecord:
        """With where the time went, and the rollbacks so far, if any."""
        self.goodput.spent("data_wait", record.get("data_wait_seconds", 0.0))
        left_out = sum(each.batches for each in self._rollbacks if each.after < record["step"])
        rollbacks = {"rollbacks": len(self._rollbacks), "left_out_batches": left_out} if self._rollbacks else {}
        return record | rollbacks | self.goodput.record()

    def check_skipped(self, record: MetricsRecord) -> None:
        """Look at a step that was recorded.

        Raises:
            SkippedTooOftenError: the run is to go back.
        """
        step, count = record["step"], _skipped(record)
        self._skipped[step] = count
        start = self._window_start(step)
        self._skipped = {old: skipped for old, skipped in self._skipped.items() if old >= start}
        before = next(iter(self._skipped.values()))
        if 0 < self._config.skipped_updates <= count - before:
            first = next(old for old, skipped in self._skipped.items() if skipped > before)
            raise SkippedTooOftenError(first, step, count - before)

    def _window_start(self, step: int) -> int:
        """After which step skipped updates count; none of those at which the run went back do so again."""
        return max(step - self._config.window, *(each.after for each in self._rollbacks if each.after <= step), 0)

    def _go_back(self, skipped: SkippedTooOftenError) -> None:
        config, made = self._config, len(self._rollbacks)
        if made >= config.times:
            raise CannotGoOnError(
                f"{skipped}, after {made} rollbacks (training.rollback.times); lower training.peak_learning_rate, or "
                "look at the data and the losses before"
            )
        steps = from_first(acknowledged_steps(self._run.checkpoints))
        # Not behind an earlier rollback: the batches at which that was made would be read again.
        after = max(skipped.first - 1 - config.steps_before, 0, *(each.after for each in self._rollbacks))
        back_to = max((step for step in steps if step <= after), default=min(steps, default=0))
        rollback = Rollback(max(after, back_to), config.batches, skipped.step)
        self._rollbacks.append(rollback)
        self.step, self.newest = None, back_to
        self._write()
        self._records = read_metrics(self._run.metrics)
        self._run.say(
            f"{skipped}: going back to step {back_to}, and leaving out {rollback.batches} batches after step "
            f"{rollback.after} (rollback {made + 1} of at most {config.times})"
        )

    def _write(self) -> None:
        if is_main_process():
            content = {"back_to": self.newest, "rollbacks": [asdict(each) for each in self._rollbacks]}
            write_whole(self._run.rollbacks, json_bytes(content))


def _skipped(record: MetricsRecord) -> int:
    """Updates skipped so far."""
    return sum(record.get(name) or 0 for name in _SKIPPED)
