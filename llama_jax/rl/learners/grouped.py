"""Learning without a critic: completions against others after the same prompt (GRPO and what came of it)."""

from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Bool, Float, PyTree
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.model.lora import without_adapter
from llama_jax.rl.aggregation import Aggregation
from llama_jax.rl.config import GrpoConfig
from llama_jax.rl.groups import Advantages, normalized_then_summed, without_contrast
from llama_jax.rl.judging import Judge, Judged
from llama_jax.rl.learners.opened import Opened, plan_of
from llama_jax.rl.learners.trained import Trained
from llama_jax.rl.loop import (
    Clock,
    Parts,
    Progress,
    asked,
    compared,
    mean_rewards,
    of_lengths,
    of_updates,
    tokens_read,
)
from llama_jax.rl.rollouts import Rollouts
from llama_jax.rl.updates import Experience, Updates, logprobs_by


class GroupLearner:
    """Trains a policy alone.

    Args:
        advantages: Of summed rewards.
    """

    def __init__(self, aggregation: Aggregation, advantages: Advantages, opened: Opened[GrpoConfig]) -> None:
        self._config, self._advantages, config = opened.config, advantages, opened.config
        self._role, self._start = opened.policy, opened.start
        self._updates = Updates(
            self._role.program,
            plan_of(config, aggregation),
            longest=opened.longest,
            completions=config.rollout.completions,
            seed=config.seed,
        )
        self.judge = Judge(config.rewards, opened.tokenizer, config.rollout.max_new_tokens, opened.data.fields)

    def fresh(self) -> Trained:
        """See `Learner`."""
        return self._role.begun(*self._start.fresh())

    def targets(self) -> dict[str, PyTree]:
        """See `Learner`."""
        return self._role.targets()

    def items(self, state: Trained) -> dict[str, PyTree]:
        """See `Learner`."""
        return self._role.items(state)

    def restored(self, items: dict[str, PyTree], progress: Progress) -> Trained:
        """See `Learner`."""
        return self._role.restored(items)

    def result(self, state: Trained) -> PyTree:
        """See `Learner`."""
        return state.params

    def iterate(self, parts: Parts, state: Trained, progress: Progress) -> tuple[Trained, Progress, MetricsRecord]:
        """See `Learner`."""
        config, program = self._config, self._role.program
        clock, params = Clock(), state.params
        with clock.timing("layout"):
            parts.sampler.update(params)
        batch = with_contrast(config, parts, progress.prompts, clock)
        rollouts = batch.rollouts
        with clock.timing("scoring"):
            old = logprobs_by(program, config.rollout.temperature, params, rollouts)
            reference = np.zeros_like(old)
            if config.beta:
                base, _ = without_adapter(params)
                reference = logprobs_by(program, config.rollout.temperature, base, rollouts)
        weights, of_sampler = compared(config, old, rollouts)
        learned = learned_tokens(config, batch)
        with clock.timing("update"):
            experience = Experience(old, reference, weights, self._advantages_of(parts, batch))
            del params  # of which the updates take the memory
            after, metrics = self._updates(*state, rollouts, learned, experience, progress.iteration)
        progress = progress.after(batch.asked, batch.tokens)
        record = {"step": progress.iteration, **of_updates(metrics), "tokens": progress.tokens}
        record |= {**batch.record, **of_sampler}
        record |= {"reward_failures": failures} if (failures := parts.judge.record()) else {}
        read = tokens_read(rollouts)
        record |= clock.record(batch.tokens, read, read * len(metrics) // config.minibatches)
        return Trained(after, state.frozen), progress, record

    def _advantages_of(self, parts: Parts, batch: "Batch") -> Float[np.ndarray, "N C"]:
        size = self._config.rollout.num_generations
        if self._config.rewards.normalize == "before_sum":
            found = normalized_then_summed(batch.judged.each, parts.judge.weights, size)
        else:
            found = self._advantages(batch.judged.summed, size)
        return np.where(batch.rollouts.mask, found[:, None], 0).astype(np.float32)


class Batch(NamedTuple):
    """The rollout that an iteration learns from."""

    rollouts: Rollouts
    judged: Judged
    asked: int
    """Prompts that were asked, those among them that were replaced."""
    tokens: int
    """That were sampled for it."""
    record: MetricsRecord


def with_contrast(config: GrpoConfig, parts: Parts, first: int, clock: Clock) -> Batch:
    """Groups of completions; others take the place of those of which nothing can be learned, up to a bound."""
    size, prompts = config.rollout.num_generations, config.rollout.prompts
    rollouts, judged = asked(parts, first, prompts, clock)
    # Measured before any is replaced: of what is left, the rewards are no sample of the policy's.
    record = mean_rewards(parts.judge, judged) | _of_groups(judged, size) | of_lengths(rollouts)
    number, tokens, replaced = prompts, int(rollouts.lengths.sum()), 0
    dull = without_contrast(judged.summed, size)
    for _ in range(config.rollout.resampled):
        if not (count := int(dull.sum())):
            break
        others, of_others = asked(parts, first + number, count, clock)
        number, tokens, replaced = number + count, tokens + int(others.lengths.sum()), replaced + count
        places = np.repeat(dull, size)
        rollouts = rollouts.with_others(places, others)
        for mine, theirs in zip(judged, of_others, strict=True):
            mine[places] = theirs
        dull = without_contrast(judged.summed, size)
    record |= {"resampled_groups": replaced, "groups_without_contrast": int(dull.sum())}
    return Batch(rollouts, judged, number, tokens, record)


def learned_tokens(config: GrpoConfig, batch: Batch) -> Bool[np.ndarray, "N C"]:
    """The tokens that are learned from: not those of completions without a reward, nor, if the config says so, of those
    that no end token ended."""
    learned = ~np.isnan(batch.judged.summed) & (batch.rollouts.ended | config.learn_truncated)
    return batch.rollouts.mask & learned[:, None]


def _of_groups(judged: Judged, size: int) -> MetricsRecord:
    """`reward_deviation` is the mean over groups of their deviation, `reward_zero_deviation` the share of groups whose
    rewards are all equal."""
    groups = judged.summed.reshape(-1, size)
    known = [group[~np.isnan(group)] for group in groups]
    deviations = [float(np.std(group, ddof=1)) for group in known if len(group) > 1]
    return {
        "reward_deviation": float(np.mean(deviations)) if deviations else None,
        "reward_zero_deviation": float(without_contrast(judged.summed, size).mean()),
    }
