"""Two models on the same held-out prompts: which answers are better, by a reward model and by a judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from llama_jax.checkpoints.opening import ModelReference, OpenModel, open_model, open_params
from llama_jax.core.arrays import Float
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.sources.opening import errors_of
from llama_jax.model.lora import merge
from llama_jax.pipeline.config import ComparisonConfig
from llama_jax.rl.learners.reward_model import OpenRewardModel
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.prompts import ARGUMENTS, Prompt, PromptData, arguments_of
from llama_jax.rl.rewards.config import RewardFunctionConfig
from llama_jax.rl.rewards.functions import RewardFunction
from llama_jax.rl.rollouts import Rollouts, Sampler, rollout_slots
from llama_jax.runs.starting import stop_ids
from llama_jax.runs.verdict import Verdict, mean_and_error

REWARD_MODEL = "reward model"
_EQUAL = 1e-5
"""Scores of a reward model that differ by no more are the same but for rounding."""


class Answers(NamedTuple):
    """What a model said to each prompt."""

    texts: list[str]
    tokens: list[int]
    scores: dict[str, list[float | None]]
    """By who scored them; None: no score."""


@dataclass(frozen=True)
class Comparison:
    """Two models, before and after PPO, on the same prompts."""

    prompts: list[str]
    before: Answers
    after: Answers

    @property
    def judges(self) -> list[str]:
        """Who scored."""
        return list(self.before.scores)

    def outcomes(self, judge: str) -> Float[np.ndarray, "P"]:
        """1 where the answer after PPO is better, 0.5 where both are worth the same, else 0; prompts without a score of
        both are left out."""
        pairs = zip(self.before.scores[judge], self.after.scores[judge], strict=True)
        known = [(before, after) for before, after in pairs if before is not None and after is not None]
        return np.array([_outcome(before, after) for before, after in known], np.float64)

    def verdict(self, judge: str) -> Verdict | None:
        """The win rate beside that of equal models; None where nothing could be compared."""
        outcomes = self.outcomes(judge)
        if not len(outcomes):
            return None
        rate, error = mean_and_error(outcomes)
        name = f"win rate over SFT by the {judge if judge == REWARD_MODEL else f'judge {judge}'}"
        return Verdict(name, rate, error, "equal models", 0.5, error, len(outcomes), unit="%")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"prompts": self.prompts, "before": self.before._asdict(), "after": self.after._asdict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Comparison":
        """The inverse of `to_json`."""
        return cls(values["prompts"], Answers(**values["before"]), Answers(**values["after"]))


def compare(
    config: ComparisonConfig, ppo: PpoConfig, tuned: str, stopping: Callable[[], bool], say: Callable[[str], None]
) -> Comparison | None:
    """Have the model that `ppo` began with and the one at `tuned` answer the same prompts, and the answers scored.

    Args:
        stopping: Whether to leave.

    Returns:
        None if it was left.

    Raises:
        UserError: a model, the prompts or the judge cannot be opened.
        CannotGoOnError: the judge failed.
    """
    with jax.set_mesh(make_mesh(ppo.mesh)):
        said: list[tuple[Rollouts, list[str]]] = []
        prompts, fields, judge = list[Prompt](), list[str](), None
        for path in (str(ppo.model), tuned):
            if stopping():
                return None
            opened = _open(path, ppo, say)
            if not prompts:
                data = PromptData(ppo.data, Layout(ppo.data.template, opened.tokenizer), ppo.seed, say)
                prompts, fields = _compared_of(config, data), data.fields
                judge = judge_of(config, (*ARGUMENTS, *fields))
            rollouts = _answers(config, ppo, opened, prompts)
            said.append((rollouts, [opened.tokenizer.decode(ids) for ids in rollouts.completions]))
        del opened  # before the reward model is there as well
        if stopping():
            return None
        reward = _reward_model(str(ppo.reward_model), ppo, say)
        scores = [reward.scores(ppo.training.batch_size, ppo.row_length, rollouts) for rollouts, _ in said]
    found = []
    for (rollouts, texts), by_model in zip(said, scores, strict=True):
        by = {REWARD_MODEL: _values(by_model)}
        if judge is not None:
            arguments = arguments_of(prompts, texts, rollouts.completions, fields)
            by[judge.config.function] = _values(_judged(judge, arguments))
        found.append(Answers(texts, rollouts.lengths.tolist(), by))
    return Comparison([_asked(prompt) for prompt in prompts], *found)


def judge_of(config: ComparisonConfig, names: Sequence[str] | None = None) -> RewardFunction | None:
    """The judge, opened.

    Args:
        names: See `RewardFunction.check`.

    Raises:
        UserError: it cannot be.
    """
    if config.judge is None:
        return None
    with errors_of("comparison.judge", instead_of="rewards.functions"):
        judge = RewardFunction(RewardFunctionConfig(config.judge, timeout_seconds=config.timeout_seconds))
        judge.check(names)
    return judge


def _open(path: str, ppo: PpoConfig, say: Callable[[str], None]) -> OpenModel:
    step = ppo.step if path == ppo.model else None
    return open_model(ModelReference(path, step), ppo.compute, tokenizer=ppo.tokenizer, say=say)


def _judged(judge: RewardFunction, arguments: dict[str, Any]) -> Float[np.ndarray, "N"]:
    try:
        return judge(arguments)
    except CannotGoOnError:
        raise CannotGoOnError(
            f"comparison.judge: {judge.config.function}: {judge.problem}; the stages are done: mend it, and "
            "run the same command to compare them"
        ) from None


def _compared_of(config: ComparisonConfig, data: PromptData) -> list[Prompt]:
    found = data.held_out[: config.prompts]
    if len(found) < (config.prompts or 2):
        raise UserError(f"comparison.prompts: only {len(found)} held-out prompts can be used; give no more")
    return found


def _answers(config: ComparisonConfig, ppo: PpoConfig, opened: OpenModel, prompts: Sequence[Prompt]) -> Rollouts:
    ends = stop_ids(opened.tokenizer, Layout(ppo.data.template, opened.tokenizer))
    temperature = ppo.rollout.temperature if config.temperature is None else config.temperature
    sampling = replace(ppo.rollout, temperature=temperature or 1.0)
    length = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
    slots = rollout_slots(ppo.rollout, len(prompts))
    sampler = Sampler(opened.model, opened.params, sampling, slots=slots, length=length, stop_ids=ends)
    asked = [prompt.ids for prompt in prompts]
    return sampler.sample(asked, 1, seed=ppo.seed, first=0, greedy=not temperature)


def _reward_model(path: str, ppo: PpoConfig, say: Callable[[str], None]) -> OpenRewardModel:
    opened = open_params(ModelReference(path, ppo.reward_step), ppo.compute, identify=False, say=say)
    return OpenRewardModel.of(replace(opened, params=merge(opened.params)), path)


def _values(scores: Float[np.ndarray, "N"]) -> list[float | None]:
    return [None if np.isnan(score) else float(score) for score in scores]


def _outcome(before: float, after: float) -> float:
    return 0.5 if abs(after - before) <= _EQUAL else float(after > before)


def _asked(prompt: Prompt) -> str:
    if isinstance(prompt.asked, str):
        return prompt.asked
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.asked)
