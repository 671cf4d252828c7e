"""How the losses of tokens become the loss of an update: what each token counts, and what the sum is divided by. Of the
completions of one update, `[n, C]`; masks are 1 where a token is learned from.

Known by the names of the methods that came with them: `sequence_mean` GRPO, GSPO and RLOO, `token_mean` BNPO and PPO,
`rollout_token_mean` DAPO and CISPO, `fixed_length` Dr. GRPO."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Bool, Float


class Shares(NamedTuple):
    """See `core.batches.PolicyBatch`."""

    shares: Float[np.ndarray, "n C"]
    normalizer: float


class Rollout(NamedTuple):
    """What of the whole rollout an aggregation may want to know."""

    tokens_per_update: float
    """Tokens that are learned from in all of it, by the number of updates of an epoch."""
    longest: int
    """Tokens that a completion may have."""


Aggregation = Callable[[Bool[np.ndarray, "n C"], Rollout], Shares]


def sequence_mean(mask: Bool[np.ndarray, "n C"], rollout: Rollout) -> Shares:
    """The mean over completions of the mean over their tokens (arXiv:2402.03300, equation 3). A completion that is not
    learned from is still one of them."""
    del rollout
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return Shares((mask / counts).astype(np.float32), len(mask))


def token_mean(mask: Bool[np.ndarray, "n C"], rollout: Rollout) -> Shares:
    """The mean over the tokens of the update."""
    del rollout
    return Shares(mask.astype(np.float32), max(float(mask.sum()), 1.0))


def rollout_token_mean(mask: Bool[np.ndarray, "n C"], rollout: Rollout) -> Shares:
    """The sum over the tokens of the update by the mean number of tokens of an update: a token counts the same in each
    (arXiv:2503.14476, equation 12)."""
    return Shares(mask.astype(np.float32), max(rollout.tokens_per_update, 1.0))


def fixed_length(mask: Bool[np.ndarray, "n C"], rollout: Rollout) -> Shares:
    """The sum over tokens by completions times the most tokens of one, so that a token counts the same in a long answer
    and in a short one (arXiv:2503.20783, section 3.2)."""
    return Shares(mask.astype(np.float32), float(len(mask) * rollout.longest))
