"""The sampler and the forward pass of training should find a sampled token equally likely. Here is measured by how much
they do not, and corrected for it. Log-probabilities `[N, C]` in nats, of the distribution that was sampled from."""

from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Bool, Float
from llama_jax.core.errors import CannotGoOnError
from llama_jax.rl.config import Correction

MOST_DIFFERENCE = 1e-3
"""Nats, of one token, where both compute in float32: beyond it is no rounding, but a mistake."""
_MOST_LOG = 20.0


class Agreement(NamedTuple):
    """Of one rollout, over its tokens."""

    mean_difference: float
    """Of |log p by the sampler - log p by training|."""
    largest_difference: float
    ratio: float
    """Mean of p by training / p by the sampler."""
    unknown: int
    """Tokens of which the sampler gave no number."""

    def checked(self, limit: float = MOST_DIFFERENCE) -> "Agreement":
        """The same.

        Raises:
            CannotGoOnError: they differ by more than the limit, or the sampler gave no number.
        """
        if self.unknown:
            raise CannotGoOnError(f"rollout: the sampler gave no log-probability of {self.unknown} tokens")
        if not self.largest_difference <= limit:
            raise CannotGoOnError(
                f"rollout: sampler and training differ by {self.largest_difference:.2g} nats in the log-probability of "
                f"a token, in float32, where {limit:g} is the most that rounding explains; one of them reads other "
                "weights or another context"
            )
        return self


def agreement(
    training: Float[np.ndarray, "N C"], sampler: Float[np.ndarray, "N C"], mask: Bool[np.ndarray, "N C"]
) -> Agreement:
    """Compare them where the mask selects."""
    known = (training - sampler)[mask & ~np.isnan(sampler)]
    unknown = int(mask.sum()) - len(known)
    if not len(known):
        return Agreement(0.0, 0.0, 1.0, unknown)
    ratio = np.exp(np.clip(known, -_MOST_LOG, _MOST_LOG)).mean()
    return Agreement(float(np.abs(known).mean()), float(np.abs(known).max()), float(ratio), unknown)


def importance_weights(
    training: Float[np.ndarray, "N C"],
    sampler: Float[np.ndarray, "N C"],
    mask: Bool[np.ndarray, "N C"],
    correction: Correction = "sequence_mask",
    bounds: tuple[float, float] = (0.0, 3.0),
) -> Float[np.ndarray, "N C"]:
    """What the loss of each token is to be multiplied by, so that its mean over what the sampler gives is that over
    what training would have: the ratio p by training / p by the sampler.

    Args:
        correction: Of each token its own ratio, or of all tokens of a completion that of the whole; `truncate` moves
            ratios to the bounds, `mask` leaves out what lies outside of them. A token without a number from the sampler
            counts as equally likely.
        bounds: The least and the largest ratio.
    """
    if correction == "none":
        return np.ones_like(training)
    differences = np.nan_to_num(np.where(mask, training - sampler, 0.0), nan=0.0)
    if correction.startswith("sequence"):
        differences = np.broadcast_to(differences.sum(axis=1, keepdims=True), differences.shape)
    ratios = np.exp(np.clip(differences, -_MOST_LOG, _MOST_LOG)).astype(np.float32)
    low, high = np.float32(bounds[0]), np.float32(bounds[1])
    if correction.endswith("truncate"):
        return np.clip(ratios, low, high)
    return np.where((ratios < low) | (ratios > high), np.float32(0), ratios)
