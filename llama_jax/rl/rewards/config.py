"""Settings of reward functions."""

import math
from dataclasses import dataclass

from llama_jax.core.errors import UserError

LARGEST_FACTOR = 1e8
"""Of a reward, a weight or a penalty: the sum of the squares of a million products of two of them is in float32."""


@dataclass(frozen=True)
class RewardFunctionConfig:
    """A function that says what completions are worth, called as TRL calls it."""

    function: str
    """Where it is: FILE.py:NAME, or the name of one of those that come with llama_jax (exact, last_number, phrases)."""
    weight: float = 1.0
    """Factor on its rewards in the sum of all functions."""
    timeout_seconds: float = 60.0
    """Wall time that a call for all completions of a rollout may take; then its process is killed."""
    memory_bytes: int = 4 * 2**30
    """Address space that its process may take."""
    largest_reward: float = 1e6
    """A reward further from 0 than this is none."""
    failures_allowed: int = 0
    """Calls one after another that may fail before the run stops: that raise, take too long, give too few rewards or
    too many, or one that is no finite number within bounds. 0: it stops at the first."""

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "memory_bytes", "largest_reward"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"rewards.{name}: {getattr(self, name)} must be above 0 and finite")
        check_factor("rewards.weights", self.weight)
        check_factor("rewards.largest_reward", self.largest_reward)
        if self.failures_allowed < 0:
            raise UserError(f"rewards.failures_allowed: {self.failures_allowed} must not be negative")


def check_factor(setting: str, value: float) -> None:
    """Refuse a factor of rewards, or a bound on them, with which their squares would leave float32."""
    if not abs(value) <= LARGEST_FACTOR:
        raise UserError(f"{setting}: {value} must be a number between {-LARGEST_FACTOR:g} and {LARGEST_FACTOR:g}")
