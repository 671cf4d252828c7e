"""What can be told to the optimizer, the step and the loop."""

import math
from dataclasses import dataclass, field
from typing import Literal

from llama_jax.core.errors import UserError

_RANGES = (
    ("peak_learning_rate", 0, math.inf),
    ("final_learning_rate_fraction", 0, math.inf),
    ("beta1", 0, 1),
    ("beta2", 0, 1),
    ("weight_decay", 0, math.inf),
    ("clip_norm", 0, math.inf),
    ("z_loss", 0, math.inf),
    ("spike_sigma", 0, math.inf),
)
"""Settings with the least value that each may have, and one that is too much."""


@dataclass(frozen=True)
class RollbackConfig:
    """Going back where updates are skipped again and again, and past the batches at which they were (PaLM,
    arXiv:2204.02311, section 5.1: from about 100 steps before a spike, without the next 200 to 500 batches)."""

    skipped_updates: int = 0
    """Skipped updates within `window` steps at which the run goes back; 0: it never does."""
    window: int = 100
    """Steps within which they are counted."""
    steps_before: int = 100
    """How many steps before the first of them the batches begin that are left out. The run goes back to the newest
    checkpoint before that, or else to the oldest that there is."""
    batches: int = 300
    """Batches that are left out."""
    times: int = 3
    """How often a run may go back; where it would once more, it ends."""

    def __post_init__(self) -> None:
        for name, least in (("skipped_updates", 0), ("window", 1), ("steps_before", 0), ("times", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"training.rollback.{name}: {value} must be at least {least}")
        if self.batches < (least := self.window + self.steps_before):
            raise UserError(
                f"training.rollback.batches: {self.batches} must be at least {least}, `window` and `steps_before` "
                "together: else those at which updates were skipped come again"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Optimization. The defaults of the AdamW constants are LLaMA's (arXiv:2302.13971, section 2.3)."""

    steps: int = 1000
    """Number of batches to train on."""
    batch_size: int = 32
    """Rows in the batch of one update."""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """Stages of smaller batches before `batch_size`: pairs [first_step, rows] in order, the first at step 0, the last
    [first_step, batch_size]. Empty: `batch_size` throughout. Example: [[0, 512], [5000, 1024], [20000, 2048]]."""
    microbatches: int = 1
    """Parts a batch is cut into; their gradients are added, so memory falls and the update stays the same."""
    peak_learning_rate: float = 3e-4
    """Learning rate at the end of the warm-up."""
    warmup_steps: int | None = 100
    """Updates over which the learning rate rises linearly. null: `warmup_fraction` says how many."""
    warmup_fraction: float | None = None
    """The same as a fraction of the schedule. null: `warmup_steps` says it."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate changes after the warm-up."""
    schedule_steps: int | None = None
    """Updates until the learning rate reaches its end; None: `steps`, as first asked."""
    final_learning_rate_fraction: float = 0.1
    """Learning rate at the end of the schedule, as a fraction of the peak."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root in AdamW's denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only (never on norms)."""
    clip_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits' normaliser near 1 (PaLM, arXiv:2204.02311, section 5); 0: none."""
    trainable: str | None = None
    """Regular expression searched for in parameter paths such as `layers/attention/q_proj/kernel`; only matching
    parameters train. None: all."""
    spike_sigma: float = 6.0
    """Skip an update whose loss or gradient norm lies this many standard deviations above the recent mean; 0 skips
    only non-finite ones."""
    spike_window: int = 128
    """Number of recent updates the mean and deviation are taken over."""
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    """What happens where updates are skipped again and again."""
    fingerprint_every: int = 1000
    """Steps between comparisons of all that several devices hold alike, bit for bit; a device that differs ends the
    run. Let it divide `checkpoints.every`, and nothing is saved that was not compared. 0: none is made."""
    evaluate_every: int = 200
    """Steps between evaluations on the held-out documents; one more is made at the end."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "microbatches", "peak_learning_rate", "clip_norm", "evaluate_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"training.{name}: {getattr(self, name)} must be greater than 0")
        if (self.warmup_steps is None) == (self.warmup_fraction is None):
            raise UserError(
                f"training.warmup_steps: {self.warmup_steps} and training.warmup_fraction: {self.warmup_fraction} are "
                "two ways to say one thing; set one of them, and the other to null".replace("None", "null")
            )
        for name, low, high in _RANGES:
            if not low <= (value := getattr(self, name)) < high:
                limit = "finite" if high == math.inf else f"below {high:g}"
                raise UserError(f"training.{name}: {value} must be at least {low:g} and {limit}")
        if not 0 < self.epsilon < math.inf:
            raise UserError(f"training.epsilon: {self.epsilon} must be above 0 and finite")
        for name, least in (("warmup_steps", 0), ("schedule_steps", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"training.{name}: {value} must be at least {least}, or null")
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction < 1:
            raise UserError(f"training.warmup_fraction: {self.warmup_fraction} must be at least 0 and below 1")
        if self.fingerprint_every < 0:
            raise UserError(f"training.fingerprint_every: {self.fingerprint_every} must be at least 0")
        if self.spike_window < 8:
            raise UserError(f"training.spike_window: {self.spike_window} must be at least 8")
        self._check_stages()

    def _check_stages(self) -> None:
        starts = [start for start, _ in self.stages]
        if starts[0] != 0 or sorted(set(starts)) != starts or self.stages[-1][1] != self.batch_size:
            raise UserError(
                f"training.batch_ramp: {[list(stage) for stage in self.batch_ramp]} must start at step 0, rise in "
                f"steps, and end with training.batch_size {self.batch_size}"
            )
        for _, rows in self.stages:
            if rows < 1 or rows % self.microbatches:
                raise UserError(f"training.microbatches: {rows} rows are not divisible by {self.microbatches}")

    @property
    def warmup_updates(self) -> int:
        """Updates of the warm-up, whichever way it was given."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round((self.warmup_fraction or 0.0) * (self.schedule_steps or self.steps))

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """The batch sizes as (first step, rows), in order; one stage when there is no ramp."""
        return self.batch_ramp or ((0, self.batch_size),)

    def batch_size_at(self, step: int) -> int:
        """Rows in the batch of the given step (from 0)."""
        return next(rows for start, rows in reversed(self.stages) if step >= start)

    def rows_until(self, step: int) -> int:
        """Rows in the batches before the given step."""
        ends = [start for start, _ in self.stages[1:]] + [step]
        return sum(rows * max(min(end, step) - start, 0) for (start, rows), end in zip(self.stages, ends, strict=True))
