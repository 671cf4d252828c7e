"""What the commands that learn from preferences can be told."""

from dataclasses import dataclass, field, replace
from typing import Literal

from llama_jax.core.errors import UserError
from llama_jax.data.config import PreferenceDataConfig
from llama_jax.model.config import AdapterConfig
from llama_jax.supervised.config import ALPACA_TRAINING, FineTuningConfig
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centering < 0:
            raise UserError(f"centering: {self.centering} must not be negative")
        if self.centering and self.loss != "bradley_terry":
            raise UserError(f"centering: {self.centering} is for the loss bradley_terry, not {self.loss}")
