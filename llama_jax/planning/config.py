"""What `plan` can be told beside the settings of the run it plans."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from llama_jax.core.errors import UserError
from llama_jax.model.config import Quantization
from llama_jax.runs.config import RunConfig


@dataclass(frozen=True)
class HardwareConfig:
    """What is compiled for."""

    topology: str = "v5e:2x4"
    """Hardware to compile for, which need not be here: chips of a TPU slice by dimension of its torus, such as
    v5e:16x16, v5p:8x8x8, v4:4x8x8 or v6e:16x16, or its name in the cloud, such as v5e-256; hosts x GPUs of a cluster,
    h100:32x8."""
    num_slices: int = 1
    """TPU slices of that topology, joined by the data-centre network; they lie along `mesh.data`."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        if self.num_slices < 1:
            raise UserError(f"--num_slices {self.num_slices}: must be at least 1")


@dataclass(frozen=True)
class PlannedConfig(HardwareConfig):
    """Compile a run for hardware that is not here: whether it fits, what it sends, what bounds it. Takes every setting
    of the command that it plans, so that its configs fit."""

    what: Literal["step", "decode"] = "step"
    """`step`: one step of training. `decode`: one token for each of `decode_rows` rows with the model of the config."""
    decode_rows: int = 8
    """Rows that `decode` plans for."""
    decode_slots: int = 2048
    """Tokens of a row's cache that `decode` plans for."""
    decode_weights: Quantization | None = None
    """How the kernels are quantised that `decode` plans for; None: they are in the type of computation."""
    search: bool = False
    """Try remat policies, microbatches and meshes by a model of memory and time, compile the best ones, and print a
    ranked table."""
    compiled: int = 3
    """Candidates of `search` to compile, the first of those that fit by the estimate."""
    shown: int = 12
    """Candidates of `search` to show."""

    @property
    def run(self) -> RunConfig:
        """The settings of the command that is planned, which `plan` has beside these (`core.settings.parser`)."""
        return cast(RunConfig, self)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decode_rows", "decode_slots", "compiled", "shown"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
        if self.search and self.what == "decode":
            raise UserError("--search: is for --what step; of decoding only the mesh could be searched")


@dataclass(frozen=True)
class PlannedPipelineConfig(HardwareConfig):
    """Compile all that `rlhf` runs, for hardware that is not here: the steps of its stages, and each program of an
    iteration of PPO beside what the others keep in memory; whether they fit, and how long an iteration takes at least.
    Takes every setting of `rlhf`."""

    measured: str | None = None
    """Run of `ppo` whose times are shown beside what is planned."""


@dataclass(frozen=True)
class PlannedBenchmarkConfig(HardwareConfig):
    """Compile what `benchmark train`, `lora` or `decode` measures, for hardware that is not here. Takes every setting
    of `benchmark`."""

    @property
    def search(self) -> bool:
        """See `PlannedConfig`: a benchmark is of the step as its config has it."""
        return False

    @property
    def decode_slots(self) -> int:
        """Those of prompts and answers."""
        return cast(Any, self).decode_tokens

    @property
    def decode_weights(self) -> None:
        """They are in the type of computation."""
