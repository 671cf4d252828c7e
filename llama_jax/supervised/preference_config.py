"""What the commands that learn from preferences can be told."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from llama_jax.core.errors import UserError
from llama_jax.data.config import PreferenceDataConfig
from llama_jax.data.preferences.records import Kind
from llama_jax.model.config import AdapterConfig
from llama_jax.supervised.config import ALPACA_TRAINING, FineTuningConfig, SamplesConfig
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class PreferenceConfig(FineTuningConfig):
    """What the commands that learn from preferences have in common."""

    method: Literal["full", "lora"] = "lora"
    """Train all parameters, or a small adapter beside a model that stays as it is."""
    model_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """Type in which the model beside an adapter is kept; `nf4`: 4 bits a weight as in QLoRA (arXiv:2305.14314)."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """The adapter."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    """The preferences."""
    training: TrainingConfig = field(default_factory=lambda: replace(ALPACA_TRAINING, peak_learning_rate=1e-4))
    """Optimization."""
    epochs: float | None = 1.0
    """Passes over the training examples, which set `training.steps`; null: `training.steps` decides."""

    @property
    def kind(self) -> Kind:
        """What is learned from."""
        return "pairs"

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is laid once for all answers of an example."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "full" and self.model_dtype != "float32":
            raise UserError(f"model_dtype: {self.model_dtype} is for method lora; full keeps what it trains in float32")
        if self.method == "lora" and self.training.trainable is not None:
            raise UserError("training.trainable: is for method full; what LoRA trains is said by lora.target_modules")


@dataclass(frozen=True)
class RewardConfig(PreferenceConfig):
    """Train a reward model, which scores answers, on pairs of a better and a worse one or on scores. Run the same
    command again to resume."""

    run_dir: str = "runs/reward"
    """Folder of the run: configuration, metrics, checkpoints, curves, a picture of the scores."""
    loss: Literal["bradley_terry", "per_token", "regression"] = "bradley_terry"
    """`bradley_terry` compares the scores at the ends of two answers; `per_token` those at each position from the first
    difference on, as DeepSpeed-Chat; `regression` is on answers with a score, as ChatLLaMA."""
    centering: float = 0.0
    """Weight of the squared sum of a pair's scores beside `bradley_terry`, which keeps scores around 0; 0.01 is common
    (arXiv:2312.09244)."""

    @property
    def kind(self) -> Kind:
        """What is learned from."""
        return "scores" if self.loss == "regression" else "pairs"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_0(self, "centering")
        if self.centering and self.loss != "bradley_terry":
            raise UserError(f"centering: {self.centering} is for the loss bradley_terry, not {self.loss}")


@dataclass(frozen=True)
class ImpliedRewardConfig(PreferenceConfig):
    """What the commands that learn from preferences without a reward model have in common."""

    beta: float = 0.1
    """How strongly the model is held to the one it begins with: the reward that it implies is beta times the log of the
    ratio of their probabilities. (Of `dpo`, `length_normalized` and `simpo` want one that is larger by about the length
    of an answer, 2 to 10; for `orpo` it is the weight of the odds ratio.)"""
    share_prompts: bool = True
    """Read a prompt once for both answers to it. On TPUs and GPUs, whose kernels for attention cannot do this, false
    may be faster where prompts are short."""
    training: TrainingConfig = field(default_factory=lambda: replace(ALPACA_TRAINING, peak_learning_rate=1e-5))
    """Optimization."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Answers to fixed prompts while training."""

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is laid once for all answers of an example."""
        return self.share_prompts


_NO_REFERENCE = ("simpo", "orpo")
_PER_TOKEN = ("length_normalized", "ipo_tokens", *_NO_REFERENCE)
_SMOOTHED = ("conservative", "robust")


@dataclass(frozen=True)
class DpoConfig(ImpliedRewardConfig):
    """Train a model on pairs of a better and a worse answer, without a reward model (DPO, arXiv:2305.18290). Run the
    same command again to resume."""

    run_dir: str = "runs/dpo"
    """Folder of the run: configuration, metrics, checkpoints, curves, answers to fixed prompts."""
    loss: Literal[
        "sigmoid",
        "length_normalized",
        "hinge",
        "ipo_tokens",
        "ipo_sequence",
        "conservative",
        "robust",
        "apo_zero",
        "simpo",
        "orpo",
    ] = "sigmoid"
    """`sigmoid` is DPO's own; `length_normalized` the same per token. `hinge`: SLiC's. `ipo_sequence`: IPO as its paper
    has it; `ipo_tokens`: per token, as TRL. `conservative` and `robust` take a share of the labels, `label_smoothing`,
    to be wrong: the mean of both losses, or the loss without that bias. `apo_zero`: APO's. `simpo` and `orpo` need no
    reference model."""
    label_smoothing: float = 0.0
    """Share of pairs whose labels are taken to be the wrong way round, for `conservative` and `robust`."""
    target_margin: float = 0.0
    """What `simpo` wants the better answer to be ahead by (gamma of its paper, there 0.3 to 0.5 of beta)."""
    sft_weight: float = 0.0
    """Weight of the next-token loss of the better answer, mean over its tokens, beside the loss of the pair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "beta")
        for name, losses in (("label_smoothing", _SMOOTHED), ("target_margin", ("simpo",))):
            value = getattr(self, name)
            if value and self.loss not in losses:
                raise UserError(f"--{name} {value}: is for --loss {' or '.join(losses)}, not {self.loss}")
        if self.loss in _SMOOTHED and not 0 < self.label_smoothing < 0.5:
            raise UserError(f"--label_smoothing {self.label_smoothing}: --loss {self.loss} needs one between 0 and 0.5")
        _check_at_least_0(self, "target_margin", "sft_weight")

    @property
    def has_reference(self) -> bool:
        """The loss is of what is gained on the model that the run begins with."""
        return self.loss not in _NO_REFERENCE

    @property
    def is_per_token(self) -> bool:
        """The loss compares rewards per token."""
        return self.loss in _PER_TOKEN

    @property
    def loss_settings(self) -> dict[str, float]:
        """What the loss takes beside `beta`."""
        if self.loss in _SMOOTHED:
            return {"label_smoothing": self.label_smoothing}
        return {"target_margin": self.target_margin} if self.loss == "simpo" else {}


@dataclass(frozen=True)
class KtoConfig(ImpliedRewardConfig):
    """Train a model on answers that are good or bad, each by itself (KTO, arXiv:2402.01306). Run the same command again
    to resume."""

    run_dir: str = "runs/kto"
    """Folder of the run: configuration, metrics, checkpoints, curves, answers to fixed prompts."""
    desirable_weight: float = 1.0
    """Weight of good answers. With n of them and m bad ones, the paper wants n times this between 1 and 1.33 times m
    times `undesirable_weight`."""
    undesirable_weight: float = 1.0
    """Weight of bad answers."""

    @property
    def kind(self) -> Kind:
        """What is learned from."""
        return "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "beta", "desirable_weight", "undesirable_weight")


def _check_positive(config: DpoConfig | KtoConfig, *names: str) -> None:
    for name in names:
        if not 0 < (value := getattr(config, name)) < math.inf:
            raise UserError(f"--{name} {value}: must be a number greater than 0")


def _check_at_least_0(config: RewardConfig | DpoConfig, *names: str) -> None:
    for name in names:
        if not 0 <= (value := getattr(config, name)) < math.inf:
            raise UserError(f"--{name} {value}: must be a number of at least 0")
