"""The loop of learning from rewards: iterate, record, evaluate, save; and the parts of an iteration that all methods
share. The only loop beside that of `training.loop`. What a method does in an iteration is its learner's."""

import contextlib
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from llama_jax.core.arrays import Float, PyTree
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.replicas import ReplicaChecks
from llama_jax.rl.config import RewardLearningConfig
from llama_jax.rl.correction import MOST_DIFFERENCE, agreement, importance_weights
from llama_jax.rl.judging import Judge, Judged
from llama_jax.rl.prompts import PromptData
from llama_jax.rl.rollouts import Rollouts, Sampler

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
    kept: Mapping[str, Any] = field(default_factory=dict)
    """What a method carries from an iteration to the next, beside arrays, as JSON values."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Progress":
        """The progress that `to_json` gave."""
        return cls(**{**record, "before": tuple(record["before"])})

    def after(self, prompts: int, tokens: int, kept: Mapping[str, Any] | None = None) -> "Progress":
        """That after one more iteration, with so many more prompts asked and tokens sampled."""
        return dataclasses.replace(
            self,
            iteration=self.iteration + 1,
            prompts=self.prompts + prompts,
            tokens=self.tokens + tokens,
            kept=self.kept if kept is None else kept,
        )


@dataclass(frozen=True)
class Parts:
    """What every iteration asks with."""

    config: RewardLearningConfig
    data: PromptData
    sampler: Sampler
    judge: Judge
    say: Callable[[str], None]


State = TypeVar("State")


@runtime_checkable
class Learner(Protocol[State]):
    """A method between a run and its arrays: what it trains, how that is kept, and what it does in an iteration."""

    judge: Judge

    def fresh(self) -> State:
        """The state of a run that begins."""
        ...

    def targets(self) -> dict[str, PyTree]:
        """Shapes of what `items` gives."""
        ...

    def items(self, state: State) -> dict[str, PyTree]:
        """The array items of a checkpoint, those among them by which the policy is opened."""
        ...

    def restored(self, items: dict[str, PyTree], progress: Progress) -> State:
        """The inverse of `items`.

        Raises:
            UserError: what the run reads, but does not save, is not what it began with.
        """
        ...

    def result(self, state: State) -> PyTree:
        """The parameters of the policy that the run is about: they are evaluated, and opened by other commands."""
        ...

    def iterate(self, parts: Parts, state: State, progress: Progress) -> tuple[State, Progress, MetricsRecord]:
        """One iteration: a rollout, what it is worth, and the updates made of it."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; it knows when. See `training.loop.Hooks`."""

    record: Callable[[MetricsRecord], None]
    evaluate: Callable[[Any], MetricsRecord]
    """Of a state."""
    save: Callable[[Any, Progress, MetricsRecord], None]
    """Takes a state, where it stands, and the record of its iteration."""
    stop: Callable[[int], bool]
    trace: Callable[[int], None]
    left_out: Callable[[int], int]
    """How many rollouts, of prompts that are then not asked, are left out after an iteration."""


def learn(
    learner: Learner[State], parts: Parts, state: State, progress: Progress, hooks: Hooks
) -> tuple[State, Progress, bool]:
    """Go on to the last iteration; called under the mesh of the policy's program.

    Returns:
        The final state, where it stands, and whether a signal ended the run early.

    Raises:
        ReplicasDifferError: see `training.fingerprint_every`.
    """
    last, every = parts.config.training.steps, parts.config.checkpoints.every
    checks = ReplicaChecks(parts.config.training.fingerprint_every, progress.iteration)
    for number in range(progress.iteration + 1, last + 1):
        hooks.trace(number)
        left_out = hooks.left_out(number - 1) * parts.config.rollout.prompts
        progress = dataclasses.replace(progress, prompts=progress.prompts + left_out)
        state, progress, record = learner.iterate(parts, state, progress)
        checks.after(number, state)
        stopping = number < last and hooks.stop(number)
        if number == last or (number % parts.config.training.evaluate_every == 0 and not stopping):
            record |= hooks.evaluate(state)
        # Recorded before it is saved: an iteration is in the metrics of every run that resumes behind it.
        hooks.record(record)
        if number == last or stopping or number % every == 0:
            hooks.save(state, progress, record)
        if stopping:
            return state, progress, True
    return state, progress, False


def held_out_rewards(parts: Parts, params: PyTree) -> tuple[Float[np.ndarray, "P"], Float[np.ndarray, "P"]]:
    """What greedy answers to the held-out prompts are worth, NaN where nothing is known, and their tokens."""
    prompts = parts.data.held_out
    parts.sampler.update(params)
    rollouts = parts.sampler.sample([prompt.ids for prompt in prompts], 1, seed=0, first=0, greedy=True)
    return parts.judge(prompts, rollouts).summed, rollouts.lengths.astype(np.float32)


class Clock:
    """Where the time of an iteration goes."""

    def __init__(self) -> None:
        self._began, self._seconds = time.perf_counter(), defaultdict[str, float](float)

    @contextlib.contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Count the time within as that of a phase."""
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


def asked(parts: Parts, first: int, count: int, clock: Clock) -> tuple[Rollouts, Judged]:
    """The completions of some prompts of the run, and what they are worth.

    Args:
        first: Number of the first prompt, counted over all of the run.
    """
    size = parts.config.rollout.num_generations
    prompts = parts.data.numbered(first, count)
    with clock.timing("generation"):
        rollouts = parts.sampler.sample([each.ids for each in prompts], size, seed=parts.config.seed, first=first)
    with clock.timing("scoring"):
        judged = parts.judge([prompt for prompt in prompts for _ in range(size)], rollouts)
    for line in parts.judge.problems():
        parts.say(line)
    return rollouts, judged


def compared(
    config: RewardLearningConfig, training: Float[np.ndarray, "N C"], rollouts: Rollouts
) -> tuple[Float[np.ndarray, "N C"], MetricsRecord]:
    """Importance weights that correct for the sampler, and how it compares with training.

    Args:
        training: log p of each token by the forward pass of training.

    Raises:
        CannotGoOnError: both compute in float32, and differ by more than rounding explains.
    """
    exact = config.compute.dtype == "float32" and (config.method == "full" or config.model_dtype == "float32")
    agreed = agreement(training, rollouts.logprobs, rollouts.mask).checked(MOST_DIFFERENCE if exact else math.inf)
    weights = importance_weights(
        training, rollouts.logprobs, rollouts.mask, config.correction, config.correction_bounds
    )
    of_tokens = weights[rollouts.mask]
    return weights, {
        "sampler_difference_mean": agreed.mean_difference,
        "sampler_difference_max": agreed.largest_difference,
        "sampler_ratio": agreed.ratio,
        "importance_weight_min": float(of_tokens.min()),
        "importance_weight_mean": float(of_tokens.mean()),
        "importance_weight_max": float(of_tokens.max()),
    }


def of_updates(metrics: list[dict[str, float]]) -> MetricsRecord:
    """Means over the updates of an iteration, or the last value."""
    means = {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0] if name not in _OF_THE_LAST}
    return {**means, **{name: metrics[-1][name] for name in _OF_THE_LAST}, "updates": len(metrics)}


def of_lengths(rollouts: Rollouts) -> MetricsRecord:
    """In tokens; `clipped` is the share of completions that no end token ended."""
    lengths, ended = rollouts.lengths, rollouts.lengths[rollouts.ended]
    return {
        "completion_tokens_mean": float(lengths.mean()),
        "completion_tokens_min": int(lengths.min()),
        "completion_tokens_max": int(lengths.max()),
        "completion_tokens_mean_ended": float(ended.mean()) if len(ended) else None,
        "completions_clipped": float(1 - rollouts.ended.mean()),
    }


def mean_rewards(judge: Judge, judged: Judged) -> MetricsRecord:
    """`reward` is the mean, `rewards` the mean by what they are from."""
    each = {name: known_mean(column) for name, column in zip(judge.names, judged.each.T, strict=True)}
    return {"reward": known_mean(judged.summed), "rewards": each}


def tokens_read(rollouts: Rollouts) -> int:
    """Of all completions, with their prompts."""
    return sum(map(len, rollouts.prompts)) + int(rollouts.lengths.sum())


def known_mean(values: Float[np.ndarray, "N"]) -> float | None:
    """Of those that are numbers; None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
