"""What pretraining and fine-tuning can be told, beside what every run can."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig, ExampleDataConfig, InstructionDataConfig
from llama_jax.model.config import AdapterConfig, ModelConfig, sized
from llama_jax.runs.config import ModelRunConfig, RunConfig
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Train a LLaMA from scratch on text. Run the same command again to resume."""

    run_dir: str = "runs/pretrain"
    """Folder of the run: configuration, metrics, checkpoints, curves."""
    model: ModelConfig = field(default_factory=lambda: sized("small"))
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=600, batch_size=8, peak_learning_rate=6e-3, warmup_steps=60, evaluate_every=150
        )
    )
    """Optimization."""


@dataclass(frozen=True)
class SamplesConfig:
    """Answers to fixed prompts, written before the first step and at each evaluation, so that one can read how the
    model changes: `samples.jsonl` in the run directory. Greedy, so that only the model makes a difference."""

    prompts: tuple[str, ...] = ()
    """What a user says, each put into the template of the data. Empty: the first held-out examples' prompts."""
    held_out: int = 3
    """How many held-out prompts to take where `prompts` is empty; 0 with no prompts: no samples."""
    max_new_tokens: int = 64
    """Length of an answer, at the most, in tokens."""

    def __post_init__(self) -> None:
        for name, least in (("held_out", 0), ("max_new_tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"samples.{name}: {value} must be at least {least}")


ALPACA_TRAINING = TrainingConfig(
    batch_size=16,
    peak_learning_rate=2e-5,
    warmup_steps=None,
    warmup_fraction=0.03,
    final_learning_rate_fraction=0.0,
    beta2=0.999,
    weight_decay=0.0,
    evaluate_every=50,
)
"""Stanford Alpaca's, but for the size of a batch."""


@dataclass(frozen=True)
class FineTuningConfig(ModelRunConfig):
    """What all fine-tuning on given answers has in common."""

    epochs: float | None = 3.0
    """Passes over the training examples, which set `training.steps`; null: `training.steps` decides."""
    data: ExampleDataConfig = field(default_factory=InstructionDataConfig)
    """What to learn from."""
    training: TrainingConfig = ALPACA_TRAINING
    """Optimization."""
    checkpoints: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(keep_best=True))
    """Checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"--epochs {self.epochs}: must be a number greater than 0")


@dataclass(frozen=True)
class InstructionConfig(FineTuningConfig):
    """What SFT and LoRA have in common."""

    data: InstructionDataConfig = field(default_factory=InstructionDataConfig)
    """The instructions."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Answers to fixed prompts while training."""


@dataclass(frozen=True)
class SftConfig(InstructionConfig):
    """Fine-tune all parameters of a model on instructions and answers. Run the same command again to resume."""

    run_dir: str = "runs/sft"
    """Folder of the run: configuration, metrics, checkpoints, curves, answers to fixed prompts."""


@dataclass(frozen=True)
class LoraConfig(InstructionConfig):
    """Fine-tune a small adapter (LoRA) beside a model on instructions and answers. The model stays as it is. Run the
    same command again to resume."""

    run_dir: str = "runs/lora"
    """Folder of the run: configuration, metrics, checkpoints of the adapter, curves, answers to fixed prompts."""
    model_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """Type in which the model is kept; `nf4`: 4 bits a weight as in QLoRA (arXiv:2305.14314)."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """The adapter."""
    training: TrainingConfig = field(default_factory=lambda: replace(ALPACA_TRAINING, peak_learning_rate=3e-4))
    """Optimization."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.trainable is not None:
            raise UserError("training.trainable: is for sft; what LoRA trains is said by lora.target_modules")
