"""Learning with a critic (PPO): what each iteration does with the policy, the model that it began with, the critic and
the reward model."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core import tree
from llama_jax.core.arrays import Float, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.model.lora import merge
from llama_jax.rl.aggregation import token_mean
from llama_jax.rl.judging import Judge, RewardModel
from llama_jax.rl.learners.critic import open_critic
from llama_jax.rl.learners.experience import Lesson, Said, lesson, normalized
from llama_jax.rl.learners.opened import Opened, plan_of
from llama_jax.rl.learners.reward_model import fingerprint_of, open_reward_model
from llama_jax.rl.learners.text_rows import TextRows
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
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.rollouts import Rollouts
from llama_jax.rl.scores import RunningMoments, adapted_coefficient
from llama_jax.rl.updates import Experience, Plan, Updates, Valued, logprobs_by, no_fields, values_by

_POLICY = "policy"
"""Item of a checkpoint with the policy itself, where the model that is saved is its average."""
_CHECKED = {
    "reward_model": "--reward_model: is not the one that the run began with; if it is a run that has gone on, give "
    "--reward_step",
    "model": "--model: is not the one that the run began with; if it is a run that has gone on, give --step",
    "text": "text.source: does not hold what it did when the run began",
}
"""What is said where something that the run reads has changed, by the name of its fingerprint."""


class ActorCritic(NamedTuple):
    """What a run trains, between two iterations."""

    policy: Trained
    critic: Trained
    average: PyTree | None
    """Of what trains of the policy."""


class Kept(NamedTuple):
    """What is carried from an iteration to the next, beside arrays; checkpoints keep it as JSON."""

    coefficient: float
    """Of the divergence."""
    seen: RunningMoments
    """Of all rewards so far."""
    fingerprints: Mapping[str, str]
    """Of what the run reads, and does not save."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"coefficient": self.coefficient, "seen": list(self.seen), "fingerprints": dict(self.fingerprints)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Kept":
        """The inverse of `to_json`."""
        return cls(record["coefficient"], RunningMoments(*record["seen"]), record["fingerprints"])


class ActorCriticLearner:
    """Trains a policy and its critic."""

    def __init__(self, opened: Opened[PpoConfig]) -> None:
        self._config, self._start, self._policy = opened.config, opened.start, opened.policy
        config, program = opened.config, opened.policy.program
        size, fingerprints = config.training.batch_size, {}
        reward = None if config.reward_model is None else open_reward_model(opened, config.reward_model)
        judges = None
        if reward is not None:
            scores = functools.partial(reward.scores, size, config.row_length)
            judges = RewardModel(scores, config.rewards.model_weight)
            fingerprints["reward_model"] = reward.fingerprint
        longest, fields = config.rollout.max_new_tokens, opened.data.fields
        self.judge = Judge(config.judged_by, opened.tokenizer, longest, fields, judges)
        self._critic = open_critic(opened, reward)
        self._reference = _reference(opened) if config.kl.coefficient else None
        if config.method == "full" and self._reference is not None:
            fingerprints["model"] = fingerprint_of(self._reference)
        text: Callable[[int], Mapping[str, np.ndarray]] = no_fields
        if config.text.source is not None:
            text = TextRows(config.text, opened.tokenizer, config.row_length, size, config.seed)
            opened.run.say(f"text: {config.text.source}, {text.count:,} rows of {config.row_length:,} tokens")
            fingerprints["text"] = text.fingerprint
        made = functools.partial(
            Updates, longest=opened.longest, completions=config.rollout.completions, seed=config.seed
        )
        plan = plan_of(config, token_mean)
        self._policy_updates = made(program, plan, beside=text)
        alone = Plan(plan.epochs, plan.minibatches, aggregation=None)
        self._critic_updates = made(self._critic.role.program, alone)
        self._fingerprints = fingerprints

    def fresh(self) -> ActorCritic:
        """See `Learner`."""
        policy = self._policy.begun(*self._start.fresh())
        average = jax.tree.map(jnp.copy, policy.state.trainable) if self._config.average_decay else None
        return ActorCritic(policy, self._critic.begin(), average)

    def targets(self) -> dict[str, PyTree]:
        """See `Learner`."""
        policy, critic = (
            Trained(each.program.state_shapes, each.program.frozen_shapes) for each in (self._policy, self._critic.role)
        )
        return self.items(ActorCritic(policy, critic, policy.state.trainable if self._config.average_decay else None))

    def items(self, state: ActorCritic) -> dict[str, PyTree]:
        """See `Learner`."""
        (trained, frozen), of_critic = state.policy, self._critic.role.items(state.critic)
        if state.average is None:
            return self._policy.items(state.policy) | of_critic
        saved = self._policy.items(Trained(trained.replace(trainable=state.average), frozen))
        return saved | {_POLICY: trained.trainable} | of_critic

    def restored(self, items: dict[str, PyTree], progress: Progress) -> ActorCritic:
        """See `Learner`."""
        before = Kept.from_json(progress.kept).fingerprints
        for name in _CHECKED:
            if before.get(name) != self._fingerprints.get(name):
                raise UserError(_CHECKED[name])
        policy, critic = self._policy.restored(items), self._critic.role.restored(items)
        if not self._config.average_decay:
            return ActorCritic(policy, critic, None)
        trained = policy.state.replace(trainable=items[_POLICY])
        return ActorCritic(Trained(trained, policy.frozen), critic, policy.state.trainable)

    def result(self, state: ActorCritic) -> PyTree:
        """See `Learner`."""
        return state.policy.params if state.average is None else tree.join(state.average, state.policy.frozen)

    def iterate(
        self, parts: Parts, state: ActorCritic, progress: Progress
    ) -> tuple[ActorCritic, Progress, MetricsRecord]:
        """See `Learner`."""
        config, clock = self._config, Clock()
        kept = Kept.from_json(progress.kept) if progress.kept else self._first
        with clock.timing("layout"):
            parts.sampler.update(state.policy.params)
        rollouts, judged = asked(parts, progress.prompts, config.rollout.prompts, clock)
        with clock.timing("scoring"):
            said = self._said(state, rollouts)
        weights, of_sampler = compared(config, said.old, rollouts)
        scores, seen = normalized(config.rewards, judged.summed, kept.seen)
        taught = lesson(config, rollouts, scores, said, kept.coefficient)
        with clock.timing("update"):
            state, of_update, updates = self._updated(state, rollouts, weights, said, taught, progress.iteration)
        sampled, read = int(rollouts.lengths.sum()), tokens_read(rollouts)
        after = Kept(self._coefficient_after(kept.coefficient, taught, progress), seen, self._fingerprints)
        progress = progress.after(config.rollout.prompts, sampled, after.to_json())
        record = {"step": progress.iteration, **of_update, "tokens": progress.tokens}
        record |= mean_rewards(parts.judge, judged) | taught.record | of_lengths(rollouts) | of_sampler
        record |= {"reward_failures": failures} if (failures := parts.judge.record()) else {}
        return state, progress, record | clock.record(sampled, read, read * updates // config.minibatches)

    @property
    def _first(self) -> Kept:
        return Kept(self._config.kl.coefficient, RunningMoments(), self._fingerprints)

    def _said(self, state: ActorCritic, rollouts: Rollouts) -> Said:
        program, temperature = self._policy.program, self._config.rollout.temperature
        old = logprobs_by(program, temperature, state.policy.params, rollouts)
        held = self._reference
        reference = old if held is None else logprobs_by(program, temperature, held, rollouts)
        return Said(old, reference, values_by(self._critic.role.program, state.critic.params, rollouts))

    def _updated(
        self,
        state: ActorCritic,
        rollouts: Rollouts,
        weights: Float[np.ndarray, "N C"],
        said: Said,
        taught: Lesson,
        number: int,
    ) -> tuple[ActorCritic, MetricsRecord, int]:
        """The state after the updates of an iteration, what is recorded of them, and how many were made."""
        policy, average, made, record = state.policy, state.average, 0, {}
        if number >= self._config.critic.warmup_iterations:
            experience = Experience(said.old, said.reference, weights, taught.advantages)
            after, metrics = self._policy_updates(*policy, rollouts, taught.learned, experience, number)
            policy, made = Trained(after, policy.frozen), len(metrics)
            first = {f"first_{name}": metrics[0][name] for name in ("ratio", "clip_fraction") if taught.learned.any()}
            record = of_updates(metrics) | first
        if average is not None:
            average = _averaged(average, policy.state.trainable, self._config.average_decay)
        valued = Valued(said.values, taught.returns)
        after, metrics = self._critic_updates(*state.critic, rollouts, taught.learned, valued, number)
        record |= {f"critic_{name}": value for name, value in of_updates(metrics).items()}
        return ActorCritic(policy, Trained(after, state.critic.frozen), average), record, made + len(metrics)

    def _coefficient_after(self, coefficient: float, taught: Lesson, progress: Progress) -> float:
        kl = self._config.kl
        if kl.target is None or progress.iteration < self._config.critic.warmup_iterations:
            return coefficient
        return adapted_coefficient(
            coefficient, taught.divergence, kl.target, float(kl.horizon), self._config.rollout.completions
        )


def _reference(opened: Opened[PpoConfig]) -> PyTree:
    """The model that the run began with: the base of an adapter, or one of its own."""
    base = opened.start.base
    if base is not None:
        return base.params
    found = merge(opened.start.open_model().params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    opened.run.say(f"reference: {opened.config.model}, a model of its own beside the policy, {size:,} bytes")
    return found


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def _averaged(average: PyTree, trained: PyTree, decay: float) -> PyTree:
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, trained)
