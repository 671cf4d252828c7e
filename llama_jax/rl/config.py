"""What learning from rewards can be told."""

import json
import math
from dataclasses import dataclass, field
from typing import Literal

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.core.errors import UserError
from llama_jax.data.config import Template, check_stage
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.config import AdapterConfig
from llama_jax.rl.rewards.config import LARGEST_FACTOR, RewardFunctionConfig
from llama_jax.runs.config import ModelRunConfig
from llama_jax.training.config import TrainingConfig

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class PromptDataConfig:
    """What is asked."""

    source: str = "sums"
    """`sums`: sums of two numbers below 100; `manners`: requests, to be answered politely. Else a file, a glob, or a
    directory with all below it, or `tfds:…` or `hf:…`, as for instructions. A record has `prompt`, a text or turns of
    {role, content} of which the last is a user's, or such turns as `messages`; its other fields are given to the reward
    functions."""
    split: tuple[float, ...] = ()
    """Shares of the stages of a pipeline, as for instructions."""
    stage: int | None = None
    """Which of the shares of `split` to take, from 1."""
    template: Literal["auto", Template] = "auto"
    """How a prompt is laid out, as for instructions."""
    template_date: str | None = None
    """Date, such as 2026-11-27, for a chat template that asks for the clock. null: the day on which the run begins."""
    max_prompt_tokens: int = 512
    """Prompts of more tokens are left out, and counted."""
    validation_examples: int = 100
    """Prompts held out, on whose answers the verdict is; 0: none are, and there is none."""
    bad_records: Literal["skip", "fail"] = "skip"
    """What happens at a record that cannot be used, such as one without a prompt. `skip` counts it by reason and names
    the first few; `fail` ends the run."""
    max_bad_fraction: float = 0.01
    """Share of the records that may be skipped; more end the run."""

    def __post_init__(self) -> None:
        for name, least in (("max_prompt_tokens", 1), ("validation_examples", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"data.{name}: {value} must be at least {least}")
        check_stage(self.split, self.stage)
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction: {self.max_bad_fraction} must lie between 0 and 1")

    @property
    def weighted_sources(self) -> tuple[tuple[str, float], ...]:
        """The source to read, with a weight, as other data have them."""
        return ((self.source, 1.0),)


@dataclass(frozen=True)
class RewardsConfig:
    """What completions are worth."""

    functions: tuple[str, ...] = ("exact",)
    """Python functions, each FILE.py:NAME or one of those that come with llama_jax: `exact`, the completion is the
    record's `answer`; `last_number`, its last number is that of the `answer`; `phrases`, how many of the record's
    phrases `wanted` it has, less those `unwanted`."""
    weights: tuple[float, ...] = ()
    """Factors on what the functions give, one for each; empty: 1 for all."""
    missing_end_penalty: float = 0.0
    """Taken from the reward of a completion that no end token ended."""
    overlong_buffer: int = 0
    """Tokens before the longest completion within which length is penalised, the more the longer (DAPO,
    arXiv:2503.14476, equation 13); 0: none."""
    overlong_penalty: float = 1.0
    """That of the longest completion, where there is an `overlong_buffer`."""
    timeout_seconds: float = 60.0
    """Wall time that a call of a function, for all completions of a rollout, may take."""
    memory_bytes: int = 4 * 2**30
    """Address space that the process of a function may take."""
    largest_reward: float = 1e6
    """A reward further from 0 than this is none."""
    failures_allowed: int = 0
    """Calls of a function one after another that may fail before the run stops."""

    def __post_init__(self) -> None:
        if len(set(self.functions)) < len(self.functions):
            raise UserError(f"rewards.functions: {list(self.functions)} has one twice; give it a larger weight")
        if self.weights and len(self.weights) != len(self.functions):
            raise UserError(f"rewards.weights: {len(self.weights)} weights for {len(self.functions)} functions")
        for name in ("missing_end_penalty", "overlong_buffer", "overlong_penalty"):
            if not 0 <= getattr(self, name) <= LARGEST_FACTOR:
                raise UserError(f"rewards.{name}: {getattr(self, name)} must lie between 0 and {LARGEST_FACTOR:g}")
        _ = self.each  # whose own checks are of the other settings

    @property
    def each(self) -> list[RewardFunctionConfig]:
        """The settings of each function."""
        shared = (self.timeout_seconds, self.memory_bytes, self.largest_reward, self.failures_allowed)
        weights = self.weights or (1.0,) * len(self.functions)
        return [
            RewardFunctionConfig(name, weight, *shared) for name, weight in zip(self.functions, weights, strict=True)
        ]


@dataclass(frozen=True)
class GroupRewardsConfig(RewardsConfig):
    """What completions are worth, beside others after the same prompt."""

    normalize: Literal["after_sum", "before_sum"] = "after_sum"
    """Whether rewards are normalised within their group after the functions' were added up, or those of each function
    by themselves before (GDPO, arXiv:2601.05242)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.functions:
            raise UserError("rewards.functions: at least one is needed")


@dataclass(frozen=True)
class RolloutConfig(SamplingConfig):
    """What is sampled in each iteration. Of the settings of sampling only the length and the temperature may be
    changed: training has to compute the distribution that is sampled from."""

    temperature: float = 1.0
    """Divisor of the logits, in sampling and in training alike."""
    prompts: int = 16
    """Prompts of an iteration."""
    num_generations: int = 1
    """Completions of a prompt."""
    slots: int = 64
    """Completions that are written at a time; the mesh divides them."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(f"rollout.{error}") from None
        check_sampling(self)
        _check_least(self, prompts=1, num_generations=1, slots=1)

    @property
    def completions(self) -> int:
        """Of an iteration."""
        return self.prompts * self.num_generations


@dataclass(frozen=True)
class GroupRolloutConfig(RolloutConfig):
    """What is sampled in each iteration, in groups."""

    num_generations: int = 8
    """Completions of a prompt: its group."""
    resampled: int = 0
    """How often, at the most, other prompts take the place of those whose completions are all worth the same, of which
    nothing is learned (dynamic sampling, arXiv:2503.14476, section 3.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least(self, num_generations=2, resampled=0)


_CHANGES_NOTHING = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def check_sampling(sampling: SamplingConfig) -> None:
    """Refuse what makes the distribution that is sampled from another one than training computes.

    Raises:
        UserError: a filter or a penalty is asked for, or nothing is drawn at all.
    """
    for name, neutral in _CHANGES_NOTHING.items():
        if (value := getattr(sampling, name)) != neutral:
            raise UserError(
                f"rollout.{name}: {value} must be {neutral}: it changes the distribution that is sampled from, which "
                "has to be the one that training computes"
            )
    if not sampling.temperature > 0:
        raise UserError(f"rollout.temperature: {sampling.temperature} must be above 0, as nothing is drawn without it")


def _check_least(config: RolloutConfig, **bounds: int) -> None:
    for name, least in bounds.items():
        if (value := getattr(config, name)) < least:
            raise UserError(f"rollout.{name}: {value} must be at least {least}")


_OF_OTHER_LOSSES = {"spike_sigma": 0.0, "z_loss": 0.0, "batch_ramp": ()}
"""Settings of training that policies cannot have: their losses lie around 0 and are of either sign."""


@dataclass(frozen=True)
class RewardLearningConfig(ModelRunConfig):
    """What the commands that learn from rewards have in common."""

    method: Literal["full", "lora"] = "lora"
    """Train all parameters, or a small adapter beside a model that stays as it is."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the model beside an adapter is kept."""
    lora: AdapterConfig = field(default_factory=lambda: AdapterConfig(dropout=0.0))
    """The adapter."""
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    """The prompts."""
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    """What completions are worth."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """What is sampled."""
    row_length: int = 1024
    """Tokens in a row of training, which holds as many prompts with their completions as fit."""
    rollout_epochs: int = 1
    """How often the completions of an iteration are learned from."""
    minibatches: int = 1
    """Updates of an epoch, each of a part of the completions."""
    most_divergence: float | None = None
    """Nats: where the mean squared log-ratio of an update, by two, exceeds this, the iteration makes no further one;
    null: all are made."""
    entropy_coefficient: float = 0.0
    """Weight of the mean entropy of the tokens, which the loss is less by: above 0, answers stay varied for longer."""
    learn_truncated: bool = True
    """Whether completions that no end token ended are learned from."""
    correction: Correction = "sequence_mask"
    """How the loss is corrected for what the sampler computes otherwise than training: by importance weights of tokens
    or of whole completions, which are cut off at the bounds (truncate), or 0 beyond them (mask); or not at all."""
    correction_bounds: tuple[float, float] = (0.0, 3.0)
    """The least and the largest importance weight."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            batch_size=16, peak_learning_rate=1e-5, schedule="constant", warmup_steps=0, weight_decay=0.0,
            spike_sigma=0.0, evaluate_every=50,
        )
    )  # fmt: skip
    """Optimization. Its `steps` are iterations, each with `rollout_epochs` times `minibatches` updates, which warm-up
    and schedule count."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints, each after a whole iteration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("row_length", "rollout_epochs", "minibatches"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
        for name, only in _OF_OTHER_LOSSES.items():
            if (value := getattr(self.training, name)) != only:
                shown, only = json.dumps(value), json.dumps(only)
                raise UserError(f"training.{name}: {shown} must be {only}; losses of policies lie around 0")
        if self.checkpoints.keep_best:
            raise UserError("checkpoints.keep_best: is of validation losses, of which learning from rewards has none")
        if self.method == "full" and self.model_dtype != "float32":
            raise UserError(f"model_dtype: {self.model_dtype} is for method lora; full keeps what it trains in float32")
        if self.method == "lora" and self.training.trainable is not None:
            raise UserError("training.trainable: is for method full; what LoRA trains is said by lora.target_modules")
        if self.method == "lora" and self.lora.dropout:
            raise UserError(f"lora.dropout: {self.lora.dropout} must be 0: the policy that samples has none")
        if not 0 <= self.entropy_coefficient < math.inf:
            raise UserError(f"--entropy_coefficient {self.entropy_coefficient}: must be at least 0 and finite")
        if self.most_divergence is not None and not self.most_divergence > 0:
            raise UserError(f"--most_divergence {self.most_divergence}: must be above 0")
        if self.rewards.overlong_buffer > self.rollout.max_new_tokens:
            raise UserError(
                f"rewards.overlong_buffer: {self.rewards.overlong_buffer} is more than the longest completion has, "
                f"rollout.max_new_tokens {self.rollout.max_new_tokens}"
            )
        low, high = self.correction_bounds
        if not 0 <= low <= 1 <= high:
            raise UserError(f"correction_bounds: {[low, high]} must have 1 between them, and be at least 0")
        if self.rollout.completions % self.minibatches:
            raise UserError(
                f"minibatches: {self.rollout.completions} completions are not divisible by {self.minibatches}"
            )

    @property
    def updates(self) -> int:
        """Of an iteration, at the most."""
        return self.rollout_epochs * self.minibatches


@dataclass(frozen=True)
class GrpoConfig(RewardLearningConfig):
    """Train a model on rewards of what it samples, each compared with those of other answers to the same prompt (GRPO,
    arXiv:2402.03300). Run the same command again to resume."""

    run_dir: str = "runs/grpo"
    """Folder of the run: configuration, metrics, checkpoints, curves, a verdict."""
    rewards: GroupRewardsConfig = field(default_factory=GroupRewardsConfig)
    """What completions are worth."""
    rollout: GroupRolloutConfig = field(default_factory=GroupRolloutConfig)
    """What is sampled."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = "grpo"
    """`grpo` is the paper's own; `dr_grpo` divides by no deviation and no length (arXiv:2503.20783); `dapo` counts
    tokens alike and clips less above (arXiv:2503.14476); `gspo` clips whole completions (arXiv:2507.18071); `cispo`
    bounds weights (arXiv:2506.13585); `rloo` compares with the others of the group (arXiv:2402.14740)."""
    clip_low: float | None = None
    """How far below 1 the ratio of the policies counts; null: 0.2, for `gspo` 3e-4."""
    clip_high: float | None = None
    """How far above; null: 0.2, for `dapo` 0.28, for `gspo` 4e-4. For `cispo` the largest weight itself; null: 5."""
    beta: float = 0.0
    """Coefficient of the divergence (KL, estimated by k3) from the model that the run began with; 0: it is not
    computed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clip_low", "clip_high"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value}: must be greater than 0")
        if self.clip_low is not None and self.loss == "cispo":
            raise UserError(f"--clip_low {self.clip_low}: --loss cispo bounds weights above only")
        if not 0 <= self.beta < math.inf:
            raise UserError(f"--beta {self.beta}: must be at least 0 and finite")
        if self.beta and self.lora.modules_to_save:
            raise UserError(f"lora.modules_to_save: must be empty with --beta {self.beta}: the reference is the base")
        if self.beta and self.method == "full":
            raise UserError(f"--beta {self.beta}: is for method lora, whose base is what it diverges from")
        if self.rewards.normalize == "before_sum" and self.loss in ("dr_grpo", "rloo"):
            raise UserError(f"rewards.normalize: before_sum is not for --loss {self.loss}, which normalises nothing")
