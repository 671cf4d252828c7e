"""What every run can be told, whatever it trains."""

from dataclasses import dataclass, field
from typing import Literal

from llama_jax.checkpoints.config import CheckpointConfig, StepChoice
from llama_jax.core.config import DistributedConfig, MeshConfig, SuperviseConfig, TrackingConfig
from llama_jax.model.config import ComputeConfig, sized
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class RunConfig:
    """What pretraining and fine-tuning have in common."""

    run_dir: str = "runs/run"
    """Folder of the run: configuration, metrics, checkpoints, curves."""
    resume: int | Literal["auto", "never"] = "auto"
    """`auto` resumes from the newest checkpoint that verifies; a number, from that step, dropping later ones; `never`
    insists on a fresh run."""
    seed: int = 0
    """Seed of the parameters that are drawn, of the order of the data and of dropout."""
    dry_run: bool = False
    """Lay the run out over the mesh, compile it, print parameters, bytes and FLOPs, and stop; needs no data."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """How the model is executed."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimization."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What the run records about itself."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The device mesh."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Several processes."""
    supervise: SuperviseConfig = field(default_factory=SuperviseConfig)
    """What is done about faults."""


@dataclass(frozen=True)
class ModelRunConfig(RunConfig):
    """What runs that begin with a model have in common."""

    model: str | None = None
    """The model to begin with: a run directory, a Hugging Face or Meta directory, a GGUF or llama2.c file, or a name on
    the Hugging Face hub. None: the newest run under runs/."""
    step: StepChoice | None = None
    """Checkpoint to begin with, if the model is a run; `best`: that of the lowest validation loss; None: the newest
    that verifies."""
    tokenizer: str | None = None
    """Tokenizer file, for a model that does not carry its own."""
    size: str | None = None
    """Published size that the model must have, such as llama_7b; with it `dry_run` needs no model."""

    def __post_init__(self) -> None:
        if self.size is not None:
            sized(self.size)


FREE_ON_RESUME = (
    "run_dir",
    "resume",
    "dry_run",
    "epochs",
    "samples",
    "training.steps",
    "training.evaluate_every",
    "training.rollback",
    "training.fingerprint_every",
    "checkpoints",
    "tracking",
    "mesh",
    "distributed",
    "supervise",
    "compute",
    "data.bad_records",
    "data.max_bad_fraction",
    "data.prefetch_batches",
    "data.workers",
)
"""Settings that may differ when a run is resumed; all others decide what is learned."""
