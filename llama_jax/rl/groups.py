"""Advantages without a critic: a completion against the others after the same prompt, or against all of the rollout.
Rewards of N completions, the `size` of each prompt one after the other; NaN where a reward does not apply."""

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np

from llama_jax.core.arrays import Bool, Float

Scaling = Literal["group", "batch", "none"]

_EPSILON = 1e-4
"""Added to deviations, as in TRL."""


def weighted_sum(rewards: Float[np.ndarray, "N F"], weights: Float[np.ndarray, "F"]) -> Float[np.ndarray, "N"]:
    """What several functions give, summed up by weight; those that do not apply count nothing, and where none applies
    the sum is NaN: such a completion teaches nothing, and is no part of any mean."""
    summed = np.nansum(rewards * weights[None], axis=1)
    return np.where(np.isnan(rewards).all(axis=1), np.nan, summed)


def group_advantages(rewards: Float[np.ndarray, "N"], size: int, scaling: Scaling = "group") -> Float[np.ndarray, "N"]:
    """Reward minus the mean of its group (GRPO, arXiv:2402.03300, section 4.1.2); 0 where the reward is NaN.

    Args:
        scaling: Divide by the deviation of the group, as in the paper, or of all rewards (arXiv:2508.08221), or by
            nothing, as in Dr. GRPO (arXiv:2503.20783).
    """
    groups = rewards.reshape(-1, size)
    centred = (groups - _mean(groups, 1)).reshape(-1)
    if scaling == "group":
        centred = (centred.reshape(-1, size) / (_deviation(groups, 1) + _EPSILON)).reshape(-1)
    elif scaling == "batch":
        centred = centred / (_deviation(rewards[None], 1)[0] + _EPSILON)
    return np.nan_to_num(centred, nan=0.0)


def leave_one_out_advantages(
    rewards: Float[np.ndarray, "N"], size: int, *, normalized: bool = False
) -> Float[np.ndarray, "N"]:
    """Reward minus the mean of the others of its group (RLOO, arXiv:2402.14740, equation 4); 0 where the reward is NaN
    or the only one.

    Args:
        normalized: Then with mean 0 and deviation 1 over the whole rollout.
    """
    groups = rewards.reshape(-1, size)
    others = np.maximum((~np.isnan(groups)).sum(axis=1, keepdims=True) - 1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        baselines = (np.nansum(groups, axis=1, keepdims=True) - groups) / others
    advantages = (groups - baselines).reshape(1, -1)
    if normalized:
        advantages = (advantages - _mean(advantages, 1)) / (_deviation(advantages, 1) + _EPSILON)
    return np.nan_to_num(advantages[0], nan=0.0)


def normalized_then_summed(
    rewards: Float[np.ndarray, "N F"], weights: Float[np.ndarray, "F"], size: int
) -> Float[np.ndarray, "N"]:
    """Advantages of several rewards, each normalised inside of its group before they are summed up by weight, the sums
    then over the whole rollout, so that no reward drowns another (GDPO, arXiv:2601.05242)."""
    groups = rewards.reshape(-1, size, rewards.shape[1])
    each = (groups - _mean(groups, 1)) / (_deviation(groups, 1) + _EPSILON)
    summed = weighted_sum(each.reshape(rewards.shape), weights)[None]
    # One that has a reward, but is alone with it in its group, counts as average.
    summed = np.where(np.isnan(summed) & ~np.isnan(rewards).all(axis=1), 0.0, summed)
    return np.nan_to_num((summed - _mean(summed, 1)) / (_deviation(summed, 1) + _EPSILON), nan=0.0)[0]


Advantages = Callable[[Float[np.ndarray, "N"], int], Float[np.ndarray, "N"]]
"""`(rewards, completions of a prompt) -> advantages`: one of the functions above, its settings bound."""


def without_contrast(rewards: Float[np.ndarray, "N"], size: int) -> Bool[np.ndarray, "groups"]:
    """Groups whose rewards are all equal, or of which fewer than two have one: nothing is to be learned from them."""
    groups = rewards.reshape(-1, size)
    known = ~np.isnan(groups)
    low, high = np.where(known, groups, np.inf).min(axis=1), np.where(known, groups, -np.inf).max(axis=1)
    return (known.sum(axis=1) < 2) | np.isclose(low, high)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what holds nothing but NaN the mean is NaN
        return np.nanmean(values, axis=axis, keepdims=True)


def _deviation(values: np.ndarray, axis: int) -> np.ndarray:
    """Unbiased; NaN of fewer than two."""
    count = (~np.isnan(values)).sum(axis=axis, keepdims=True)
    squares = np.nansum(np.square(values - _mean(values, axis)), axis=axis, keepdims=True)
    return np.sqrt(np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan))
