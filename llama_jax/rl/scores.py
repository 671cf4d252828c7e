"""What is done to the scores of whole completions before they become rewards, and the weight of the divergence that
stands against them. Scores `[N]`; NaN, where there is none, stays NaN."""

import math
from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Bool, Float, Int


def with_missing_end_penalty(
    scores: Float[np.ndarray, "N"], ended: Bool[np.ndarray, "N"], penalty: float
) -> Float[np.ndarray, "N"]:
    """Less by the penalty where no end token came, so that the model learns to stop (`missing_eos_penalty` of TRL)."""
    return np.where(ended, scores, scores - penalty)


def with_missing_end_score(
    scores: Float[np.ndarray, "N"], ended: Bool[np.ndarray, "N"], score: float
) -> Float[np.ndarray, "N"]:
    """This score, whatever was said, where no end token came (-1 in arXiv:2403.17031, section 3)."""
    return np.where(ended | np.isnan(scores), scores, score)


def overlong_penalties(
    lengths: Int[np.ndarray, "N"], longest: int, buffer: int, factor: float
) -> Float[np.ndarray, "N"]:
    """0 up to `longest - buffer` tokens, then linearly to -factor at `longest` (DAPO, arXiv:2503.14476, equation 13),
    to be added to scores."""
    over = lengths - (longest - buffer)
    return -factor * np.clip(over / buffer, 0.0, 1.0)


class RunningMoments(NamedTuple):
    """Mean and deviation of all scores so far. Kept with the run, so that it goes on with the same."""

    samples: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    def with_scores(self, scores: Float[np.ndarray, "N"]) -> "RunningMoments":
        """With these among them (Chan, Golub and LeVeque 1983)."""
        known = scores[~np.isnan(scores)].astype(np.float64)
        if not len(known):
            return self
        samples, difference = self.samples + len(known), float(known.mean()) - self.mean
        squares = float(np.square(known - known.mean()).sum())
        return RunningMoments(
            samples,
            self.mean + difference * len(known) / samples,
            self.squares + squares + difference**2 * self.samples * len(known) / samples,
        )

    @property
    def deviation(self) -> float:
        """Unbiased; 1 as long as nothing is known of it."""
        return math.sqrt(self.squares / (self.samples - 1)) if self.samples > 1 and self.squares else 1.0

    def normalized(self, scores: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        """Scores with mean 0 and deviation 1 by what is known."""
        return (scores - self.mean) / self.deviation


def adapted_coefficient(coefficient: float, divergence: float, target: float, horizon: float, samples: int) -> float:
    """The next coefficient of a divergence that is to be near a target (arXiv:1909.08593, section 2.2): larger where it
    is above, by at most a fifth per `horizon` completions.

    Args:
        divergence: Mean over the completions of the KL of all their tokens, in nats.
        samples: Completions that it was measured on.
    """
    error = min(max(divergence / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / horizon)
