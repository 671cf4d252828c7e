"""Everything each command can be told: one frozen dataclass a command, composed of the parts' sections."""

from dataclasses import dataclass, field
from typing import Literal

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.core.config import DistributedConfig, MeshConfig, TrackingConfig
from llama_jax.data.config import DataConfig
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.config import ComputeConfig, ModelConfig, sized
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Train a LLaMA from scratch on text. The same command again goes on where it stopped."""

    run_dir: str = "runs/pretrain"
    """Folder of the run: configuration, metrics, checkpoints, curves."""
    resume: int | Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest checkpoint that verifies; a number, from that step, dropping later ones; `never`
    insists on a fresh run."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the data."""
    dry_run: bool = False
    """Lay the run out over the mesh, compile it, print parameters, bytes and FLOPs, and stop; needs no data."""
    model: ModelConfig = field(default_factory=lambda: sized("small"))
    """The model."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """How the model is executed."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=600, batch_size=8, peak_learning_rate=6e-3, warmup_steps=60, evaluate_every=150
        )
    )
    """Optimization."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What the run records about itself."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The device mesh."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Several processes."""


FREE_ON_RESUME = (
    "run_dir",
    "resume",
    "dry_run",
    "training.steps",
    "training.evaluate_every",
    "checkpoints",
    "tracking",
    "mesh",
    "distributed",
    "compute",
    "data.prefetch_batches",
)
"""Settings that may differ when a run goes on; all others decide what is learnt."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Train a sentencepiece tokenizer as LLaMA's: BPE, byte fallback, digits split, ids 0, 1, 2 for unknown, beginning
    and end of sequence."""

    output: str = "tokenizer.model"
    """File to write."""
    vocab_size: int = 2048
    """Number of pieces, of which 259 are fixed."""
    overwrite: bool = False
    """Replace the output file if it exists."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text; `data.tokenizer` is not used."""


@dataclass(frozen=True)
class UseConfig:
    """What every command that uses a model can be told."""

    model: str | None = None
    """A run directory (its newest checkpoint), or a llama2.c model file. None: the newest run under runs/."""
    step: int | None = None
    """Checkpoint of the run to take; None: the newest that verifies."""
    tokenizer: str | None = None
    """Tokenizer file, for a model that does not carry its own."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations."""
    json: bool = False
    """Print one JSON object as the last line."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The device mesh."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Several processes."""


@dataclass(frozen=True)
class GenerateConfig(SamplingConfig, UseConfig):
    """Continue a prompt. Streams to the terminal, unless JSON is asked for."""

    prompt: str = "The "
    """Text to continue; an empty one starts from the beginning-of-sequence token alone."""
    prompts: str | None = None
    """File with a prompt a line, continued together in one batch instead of `prompt`."""
    seed: int = 0
    """Seed of the random choices."""


@dataclass(frozen=True)
class EvaluateConfig(UseConfig):
    """Measure a model."""

    task: Literal["perplexity"] = "perplexity"
    """What to measure: `perplexity`, in nats per token and bits per byte."""
    data: str | None = None
    """Text to measure on: `pydoc`, a file, a directory or a glob of .txt, .md or .jsonl files. None: the documents the
    run held out."""
    text_field: str = "text"
    """Field of a JSONL record that holds the text."""
    sequence_length: int | None = None
    """Tokens in a row; None: as the run was trained, or the model's context."""
    batch_size: int = 16
    """Rows at a time, rounded up to what the mesh divides."""


COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "tokenizer": TokenizerConfig,
}
"""The commands, `python -m llama_jax.<name>`, and what each can be told."""

PRESETS = {"model.size": sized}
"""Settings that stand for a whole section."""
