"""What can be told to the checkpoints of a run."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from llama_jax.core.errors import UserError

StepChoice: TypeAlias = int | Literal["best"]
"""Which checkpoint of a run to use: a number, or that of the lowest validation loss."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 100
    """Steps between checkpoints; one more is written at the end and on a signal."""
    keep_last: int = 2
    """Newest checkpoints to keep. The last two that verify are never deleted."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this for good."""
    keep_best: bool = False
    """Also save whenever the validation loss is the lowest so far, and keep that checkpoint: `--step best` uses it."""
    max_failed_saves: int = 5
    """Stop the run after this many failed saves in a row; a full disk is survived until then."""

    def __post_init__(self) -> None:
        for name in ("every", "keep_last", "max_failed_saves"):
            if getattr(self, name) < 1:
                raise UserError(f"checkpoints.{name}: {getattr(self, name)} must be at least 1")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"checkpoints.keep_every: {self.keep_every} must be at least 1, or null")
