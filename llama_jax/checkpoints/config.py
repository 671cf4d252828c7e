"""Settings of checkpoints: of the saving of a run, of opening a model to use it, and of converting one."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError

StepChoice: TypeAlias = int | Literal["best"]
"""Which checkpoint of a run to use: a number, or that of the lowest validation loss."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 100
    """Steps between checkpoints; one more is written at the end and on a signal."""
    keep_last: int = 2
    """Newest checkpoints to keep. The last two that verify are never deleted."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this for good."""
    keep_best: bool = False
    """Also save whenever the validation loss is the lowest so far, and keep that checkpoint: `--step best` uses it."""
    max_failed_saves: int = 5
    """Stop the run after this many failed saves in a row; a full disk is survived until then."""

    def __post_init__(self) -> None:
        for name in ("every", "keep_last", "max_failed_saves"):
            if getattr(self, name) < 1:
                raise UserError(f"checkpoints.{name}: {getattr(self, name)} must be at least 1")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"checkpoints.keep_every: {self.keep_every} must be at least 1, or null")


@dataclass(frozen=True)
class UseConfig:
    """Settings of every command that uses a model."""

    model: str | None = None
    """A run directory (its newest checkpoint), a Hugging Face or Meta directory, a GGUF or llama2.c file, or a name on
    the Hugging Face hub; a run of lora or a directory of PEFT, with the base that it names. None: the newest run under
    runs/."""
    step: StepChoice | None = None
    """Checkpoint of the run to take; `best`: that of the lowest validation loss; None: the newest that verifies."""
    adapters: tuple[str, ...] = ()
    """Runs of lora, or directories of PEFT, to put over the model: one path, or a list, '[runs/lora, other]'."""
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
class ConvertConfig:
    """Turn a model from one format into another, open the result again and compare it with the source on text."""

    source: str | None = None
    """A run directory, a Hugging Face or Meta directory, a GGUF or llama2.c file, or a name on the Hugging Face hub; a
    run of lora or a directory of PEFT, merged into the base that it names. None: the newest run under runs/."""
    adapter: str | None = None
    """Run of lora, or directory of PEFT, to merge into the source; of a run the newest checkpoint that verifies."""
    unmerge: bool = False
    """Take the adapter out of the source, which it was merged into; what comes back is the base up to rounding."""
    target: str = "exported"
    """Directory (`orbax`, `hf`, `meta`, `peft`) or file (`gguf`, `llama2c`) to write."""
    format: Literal["orbax", "hf", "meta", "gguf", "llama2c", "peft"] = "hf"
    """Format to write; `orbax` is what every command of this package opens fastest, on any mesh; `peft` is for the
    adapter alone."""
    step: StepChoice | None = None
    """Checkpoint of a run to take; `best`: that of the lowest validation loss; None: the newest that verifies."""
    tokenizer: str | None = None
    """Tokenizer file or directory, for a model that does not carry its own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"
    """Type to store; `auto`: as in the source, float32 where that is quantised; `q8_0` for GGUF only."""
    shards: int = 1
    """Files of Meta's format, one for each model-parallel rank."""
    no_check: bool = False
    """Do not compare the result with the source; saves the memory of one model in float32."""
    overwrite: bool = False
    """Replace the target if it exists."""
    json: bool = False
    """Print the report as the last line."""

    def __post_init__(self) -> None:
        if self.unmerge and self.adapter is None:
            raise UserError("--unmerge: needs --adapter, what is to be taken out")
        if self.unmerge and self.format == "peft":
            raise UserError("--unmerge: gives a model, not an adapter; take another --format than peft")
        if self.format == "peft" and self.dtype not in ("auto", "float32"):
            raise UserError(f"--dtype {self.dtype}: factors of adapters are written in float32")
