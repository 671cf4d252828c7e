"""The loop of learning from rewards: sample, judge, update, record, evaluate, save. The only one beside that of
`training.loop`, whose step and hooks it calls."""

import contextlib
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core import tree
from llama_jax.core.arrays import Float, PyTree
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.model.lora import without_adapter
from llama_jax.rl.config import RewardLearningConfig
from llama_jax.rl.correction import MOST_DIFFERENCE, Agreement, agreement, importance_weights
from llama_jax.rl.groups import Advantages, normalized_then_summed, without_contrast
from llama_jax.rl.judging import Judge, Judged
from llama_jax.rl.prompts import PromptData
from llama_jax.rl.rollouts import Rollouts, Sampler
from llama_jax.rl.updates import Experience, Updates
from llama_jax.training.loop import Hooks
from llama_jax.training.state import TrainState

_OF_THE_LAST = ("learning_rate", "skipped_updates", "batch_hash")
"""Metrics of the step that are not averaged over the updates of an iteration."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two iterations. Checkpoints keep it as JSON, so the names must not change."""

    iteration: int = 0
    """Iterations made."""
    prompts: int = 0
    """Prompts asked so far, over all of the run; the number of the next one."""
    tokens: int = 0
    """Tokens sampled so far."""
    before: tuple[float | None, ...] = ()
    """Rewards of the held-out prompts before training; None where there was none."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Progress":
        """The progress that `to_json` gave."""
        return cls(**{**record, "before": tuple(record["before"])})


@dataclass(frozen=True)
class Parts:
    """What an iteration is made of."""

    config: RewardLearningConfig
    data: PromptData
    sampler: Sampler
    judge: Judge
    updates: Updates
    advantages: Advantages
    """Of summed rewards."""
    has_reference: bool
    """Whether the loss wants to know what the base says."""
    say: Callable[[str], None]


def learn(
    parts: Parts, state: TrainState, frozen: PyTree, progress: Progress, hooks: Hooks
) -> tuple[TrainState, Progress, bool]:
    """Go on to the last iteration; called under the mesh of the program.

    Returns:
        The final state, where it stands, and whether a signal ended the run early.
    """
    last, every = parts.config.training.steps, parts.config.checkpoints.every
    for number in range(progress.iteration + 1, last + 1):
        hooks.trace(number)
        state, progress, record = iterate(parts, state, frozen, progress)
        stopping = number < last and hooks.stop(number)
        if number == last or (number % parts.config.training.evaluate_every == 0 and not stopping):
            record |= hooks.evaluate(state, frozen)
        # Recorded before it is saved: an iteration is in the metrics of every run that resumes behind it.
        hooks.record(record)
        if number == last or stopping or number % every == 0:
            hooks.save(state, frozen, progress, record)
        if stopping:
            return state, progress, True
    return state, progress, False


def iterate(
    parts: Parts, state: TrainState, frozen: PyTree, progress: Progress
) -> tuple[TrainState, Progress, MetricsRecord]:
    """One iteration: a rollout, what it is worth, and the updates made of it."""
    clock, params = _Clock(), tree.join(state.trainable, frozen)
    with clock.timing("layout"):
        parts.sampler.update(params)
    batch = _with_contrast(parts, progress.prompts, clock)
    rollouts, config = batch.rollouts, parts.config
    with clock.timing("scoring"):
        old = parts.updates.logprobs(params, rollouts)
        reference = np.zeros_like(old)
        if parts.has_reference:
            reference = parts.updates.logprobs(without_adapter(params)[0], rollouts)
    exact = config.compute.dtype == "float32" and (config.method == "full" or config.model_dtype == "float32")
    agreed = agreement(old, rollouts.logprobs, rollouts.mask).checked(MOST_DIFFERENCE if exact else math.inf)
    weights = importance_weights(old, rollouts.logprobs, rollouts.mask, config.correction, config.correction_bounds)
    with clock.timing("update"):
        experience = Experience(old, reference, weights, _advantages(parts, batch))
        del params  # of which the updates take the memory
        state, metrics = parts.updates(state, frozen, rollouts, experience, progress.iteration)
    sampled = progress.tokens + batch.tokens
    after = dataclasses.replace(
        progress, iteration=progress.iteration + 1, prompts=progress.prompts + batch.asked, tokens=sampled
    )
    read = sum(map(len, rollouts.prompts)) + int(rollouts.lengths.sum())
    record = {"step": after.iteration, **_of_updates(metrics), "tokens": sampled}
    record |= {**batch.record, **_of_agreement(agreed, weights, rollouts)}
    record |= {"reward_failures": failures} if (failures := parts.judge.record()) else {}
    return state, after, record | clock.record(batch.tokens, read, read * len(metrics) // config.minibatches)


def held_out_rewards(parts: Parts, params: PyTree) -> tuple[Float[np.ndarray, "P"], Float[np.ndarray, "P"]]:
    """What greedy answers to the held-out prompts are worth, NaN where nothing is known, and their tokens."""
    prompts = parts.data.held_out
    parts.sampler.update(params)
    rollouts = parts.sampler.sample([prompt.ids for prompt in prompts], 1, seed=0, first=0, greedy=True)
    return parts.judge(prompts, rollouts).summed, rollouts.lengths.astype(np.float32)


class _Batch(NamedTuple):
    """The rollout that an iteration learns from."""

    rollouts: Rollouts
    judged: Judged
    asked: int
    """Prompts that were asked, those among them that were replaced."""
    tokens: int
    """That were sampled for it."""
    record: MetricsRecord


def _with_contrast(parts: Parts, first: int, clock: "_Clock") -> _Batch:
    """Groups of completions; others take the place of those of which nothing can be learned, up to a bound."""
    config, size = parts.config.rollout, parts.config.rollout.num_generations

    def groups(first: int, count: int) -> tuple[Rollouts, Judged]:
        prompts = parts.data.numbered(first, count)
        with clock.timing("generation"):
            rollouts = parts.sampler.sample([each.ids for each in prompts], size, seed=parts.config.seed, first=first)
        with clock.timing("scoring"):
            judged = parts.judge([prompt for prompt in prompts for _ in range(size)], rollouts)
        for line in parts.judge.problems():
            parts.say(line)
        return rollouts, judged

    rollouts, judged = groups(first, config.prompts)
    # Measured before any is replaced: of what is left, the rewards are no sample of the policy's.
    record = _of_rewards(parts.judge, judged, size) | _of_lengths(rollouts)
    asked, tokens, replaced = config.prompts, int(rollouts.lengths.sum()), 0
    dull = without_contrast(judged.summed, size)
    for _ in range(config.resampled):
        if not (count := int(dull.sum())):
            break
        others, of_others = groups(first + asked, count)
        asked, tokens, replaced = asked + count, tokens + int(others.lengths.sum()), replaced + count
        places = np.repeat(dull, size)
        rollouts = rollouts.with_others(places, others)
        for mine, theirs in zip(judged, of_others, strict=True):
            mine[places] = theirs
        dull = without_contrast(judged.summed, size)
    record |= {"resampled_groups": replaced, "groups_without_contrast": int(dull.sum())}
    return _Batch(rollouts, judged, asked, tokens, record)


def _advantages(parts: Parts, batch: _Batch) -> Float[np.ndarray, "N C"]:
    size = parts.config.rollout.num_generations
    if parts.config.rewards.normalize == "before_sum":
        found = normalized_then_summed(batch.judged.each, parts.judge.weights, size)
    else:
        found = parts.advantages(batch.judged.summed, size)
    return np.where(batch.rollouts.mask, found[:, None], 0).astype(np.float32)


def _of_updates(metrics: list[dict[str, float]]) -> MetricsRecord:
    means = {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0] if name not in _OF_THE_LAST}
    return {**means, **{name: metrics[-1][name] for name in _OF_THE_LAST}, "updates": len(metrics)}


def _of_rewards(judge: Judge, judged: Judged, size: int) -> MetricsRecord:
    """`reward` is the mean, `reward_deviation` the mean over groups of their deviation, `rewards` the mean by function;
    `reward_zero_deviation` the share of groups whose rewards are all equal."""
    groups = judged.summed.reshape(-1, size)
    known = [group[~np.isnan(group)] for group in groups]
    deviations = [float(np.std(group, ddof=1)) for group in known if len(group) > 1]
    return {
        "reward": _mean(judged.summed),
        "reward_deviation": float(np.mean(deviations)) if deviations else None,
        "rewards": {name: _mean(column) for name, column in zip(judge.names, judged.each.T, strict=True)},
        "reward_zero_deviation": float(without_contrast(judged.summed, size).mean()),
    }


def _of_lengths(rollouts: Rollouts) -> MetricsRecord:
    """In tokens; `clipped` is the share of completions that no end token ended."""
    lengths, ended = rollouts.lengths, rollouts.lengths[rollouts.ended]
    return {
        "completion_tokens_mean": float(lengths.mean()),
        "completion_tokens_min": int(lengths.min()),
        "completion_tokens_max": int(lengths.max()),
        "completion_tokens_mean_ended": float(ended.mean()) if len(ended) else None,
        "completions_clipped": float(1 - rollouts.ended.mean()),
    }


def _of_agreement(agreed: Agreement, weights: Float[np.ndarray, "N C"], rollouts: Rollouts) -> MetricsRecord:
    of_tokens = weights[rollouts.mask]
    return {
        "sampler_difference_mean": agreed.mean_difference,
        "sampler_difference_max": agreed.largest_difference,
        "sampler_ratio": agreed.ratio,
        "importance_weight_min": float(of_tokens.min()),
        "importance_weight_mean": float(of_tokens.mean()),
        "importance_weight_max": float(of_tokens.max()),
    }


def _mean(values: Float[np.ndarray, "N"]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


class _Clock:
    """Where the time of an iteration goes."""

    def __init__(self) -> None:
        self._began, self._seconds = time.perf_counter(), defaultdict[str, float](float)

    @contextlib.contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - began

    def record(self, sampled: int, scored: int, updated: int) -> MetricsRecord:
        """Seconds by phase, and tokens by second: sampled ones, and those read with their prompts."""
        tokens = {"generation": sampled, "scoring": scored, "update": updated}
        whole = time.perf_counter() - self._began
        record: MetricsRecord = {"step_seconds": whole, "tokens_per_second": sampled / whole}
        for phase, seconds in self._seconds.items():
            record[f"{phase}_seconds"] = seconds
            if phase in tokens:
                record[f"{phase}_tokens_per_second"] = tokens[phase] / seconds
        return record
