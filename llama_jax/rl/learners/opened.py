"""What a run has opened before it knows what it will learn by."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.rl.aggregation import Aggregation
from llama_jax.rl.config import RewardLearningConfig
from llama_jax.rl.learners.trained import Role
from llama_jax.rl.prompts import PromptData
from llama_jax.rl.updates import Plan
from llama_jax.runs.starting import Start

AnyConfig = TypeVar("AnyConfig", bound=RewardLearningConfig)


@dataclass(frozen=True)
class Opened(Generic[AnyConfig]):
    """A policy and its prompts."""

    config: AnyConfig
    """With all that is known of what the run begins with."""
    command: str
    run: RunDirectory
    data: PromptData
    tokenizer: Tokenizer
    layout: Layout
    longest: tuple[int, int]
    """Tokens of the longest prompt, and of the longest completion."""
    policy: Role
    start: Start
    """What the policy begins with."""


def plan_of(config: RewardLearningConfig, aggregation: Aggregation) -> Plan:
    """The updates of a policy in an iteration."""
    most = np.inf if config.most_divergence is None else config.most_divergence
    return Plan(config.rollout_epochs, config.minibatches, aggregation, most)
