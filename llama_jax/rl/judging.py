"""What the completions of a rollout are worth, by the reward model and all reward functions of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Float
from llama_jax.core.errors import CannotGoOnError
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.rl.config import RewardsConfig
from llama_jax.rl.groups import weighted_sum
from llama_jax.rl.prompts import ARGUMENTS, Prompt, arguments_of
from llama_jax.rl.rewards.functions import RewardFunction, function_rewards
from llama_jax.rl.rollouts import Rollouts
from llama_jax.rl.scores import overlong_penalties, with_missing_end_penalty

MODEL, PENALTIES = "reward_model", "penalties"


class RewardModel(NamedTuple):
    """A model among what rewards are from."""

    scores: Callable[[Rollouts], Float[np.ndarray, "N"]]
    weight: float


class Judged(NamedTuple):
    """The rewards of N completions; NaN where there is none."""

    each: Float[np.ndarray, "N F"]
    """Of the reward model, if there is one, of each function, and the penalties, if there may be any."""
    summed: Float[np.ndarray, "N"]
    """By weight."""


class Judge:
    """Asks the reward model and the functions of a run.

    Args:
        longest: Tokens that a completion may have.
        fields: Of the records, which functions are told.
        model: None: functions alone say what is good.

    Raises:
        UserError: a function cannot be opened, or not be called with what there is.
    """

    def __init__(
        self,
        config: RewardsConfig,
        tokenizer: Tokenizer,
        longest: int,
        fields: Sequence[str],
        model: RewardModel | None = None,
    ) -> None:
        self._config, self._tokenizer, self._longest, self._model = config, tokenizer, longest, model
        self._fields, self._functions = fields, [RewardFunction(each) for each in config.each]
        for function in self._functions:
            function.check((*ARGUMENTS, *fields))
        self._penalized = bool(config.missing_end_penalty or config.overlong_buffer)
        self.names = (*[MODEL] * (model is not None), *config.functions, *[PENALTIES] * self._penalized)
        """Of what rewards are from."""
        weights = [] if model is None else [model.weight]
        weights += [each.weight for each in config.each] + [1.0] * self._penalized
        self.weights = np.array(weights, np.float32)

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Judged:
        """The rewards of completions.

        Args:
            prompts: Of each completion.

        Raises:
            UserError, CannotGoOnError: see `function_rewards`; or the reward model gives no finite number.
        """
        texts = [self._tokenizer.decode(ids) for ids in rollouts.completions]
        columns = [] if self._model is None else [_checked(self._model.scores(rollouts))[:, None]]
        if self._functions:
            arguments = arguments_of(prompts, texts, rollouts.completions, self._fields)
            columns.append(function_rewards(self._functions, arguments))
        rewards = np.concatenate(columns, axis=1)
        if self._penalized:
            # What nothing applies to has no penalty either: it is to teach nothing.
            penalties = np.where(np.isnan(rewards).all(axis=1), np.nan, self._penalties(rollouts))
            rewards = np.concatenate([rewards, penalties[:, None].astype(np.float32)], axis=1)
        return Judged(rewards, weighted_sum(rewards, self.weights))

    def record(self) -> Mapping[str, Mapping[str, int]]:
        """Of each function that had any: what it failed in so far, by kind."""
        return {function.config.function: dict(function.counts) for function in self._functions if function.counts}

    def problems(self) -> list[str]:
        """A line for each function whose last call was not as it should be."""
        return [f"reward function {each.config.function}: {each.problem}" for each in self._functions if each.problem]

    def _penalties(self, rollouts: Rollouts) -> Float[np.ndarray, "N"]:
        config, lengths = self._config, rollouts.lengths
        penalties = with_missing_end_penalty(np.zeros(len(lengths)), rollouts.ended, config.missing_end_penalty)
        if config.overlong_buffer:
            penalties += overlong_penalties(lengths, self._longest, config.overlong_buffer, config.overlong_penalty)
        return penalties


def _checked(scores: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    if wrong := int((~np.isfinite(scores)).sum()):
        raise CannotGoOnError(f"--reward_model: gives no finite number for {wrong:,} of {len(scores):,} completions")
    return scores
