"""Everything each command can be told: one frozen dataclass a command, composed of the parts' sections."""

from dataclasses import dataclass, field
from typing import Literal

from llama_jax.checkpoints.config import ConvertConfig
from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError, nearest
from llama_jax.data.config import ShownConfig, TokenizerConfig
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.evals.config import EvaluateConfig
from llama_jax.inference.config import GenerateConfig
from llama_jax.model.config import SIZES, AdapterConfig, sized
from llama_jax.planning.config import PlannedConfig
from llama_jax.supervised.config import LoraConfig, PretrainConfig, SftConfig


@dataclass(frozen=True)
class PreviewConfig(ShownConfig, PretrainConfig):
    """Show what `pretrain` will train on. Takes every setting of `pretrain`, so that its configs fit."""


@dataclass(frozen=True)
class PreviewInstructionsConfig(ShownConfig, LoraConfig):
    """Show what `sft` or `lora` will train on. Takes every setting of theirs, so that their configs fit."""

    def __post_init__(self) -> None:
        ShownConfig.__post_init__(self)
        LoraConfig.__post_init__(self)


@dataclass(frozen=True)
class PlanConfig(PlannedConfig, PretrainConfig):
    """Compile a run for hardware that is not here: whether it fits, what it sends, what bounds it. Takes every setting
    of the command that it plans, so that its configs fit."""

    def __post_init__(self) -> None:
        PlannedConfig.__post_init__(self)


@dataclass(frozen=True)
class PlanSftConfig(PlannedConfig, SftConfig):
    """Compile a run of sft for hardware that is not here."""

    def __post_init__(self) -> None:
        PlannedConfig.__post_init__(self)
        SftConfig.__post_init__(self)


@dataclass(frozen=True)
class PlanLoraConfig(PlannedConfig, LoraConfig):
    """Compile a run of lora for hardware that is not here."""

    def __post_init__(self) -> None:
        PlannedConfig.__post_init__(self)
        LoraConfig.__post_init__(self)


@dataclass(frozen=True)
class BenchmarkConfig(PretrainConfig):
    """Measure speed and memory: `benchmark train`, `benchmark lora`, `benchmark data`, `benchmark scaling`. Takes every
    setting of `pretrain`, so that its configs fit."""

    what: Literal["train", "lora", "data", "scaling"] = field(default="train", metadata={"first_word": True})
    """`train`: the training step, on synthetic tokens. `lora`: the same of an adapter over frozen weights. `data`: the
    input pipeline alone. `scaling`: the step at several contexts, widths and batch sizes, against the FLOP formula."""
    against: Literal["transformers", "peft"] | None = None
    """Compare the step with Hugging Face transformers on eager PyTorch, and `benchmark lora` with PEFT on it (extra
    `oracle`), on CPU in float32: each in a process of its own, in alternating turns. `--config benchmark_58m` is a size
    for `train`, `--config benchmark_lora` for `lora`."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """The adapter of `benchmark lora`."""
    model_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """Type in which `benchmark lora` keeps the frozen weights."""
    warmup_steps: int = 2
    """Steps before time is taken, beside the compilation."""
    turns: int = 10
    """Times that are taken, or turns of each side; the result is their median."""
    steps_per_turn: int = 2
    """Steps of a turn."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of `data.workers` to measure the input pipeline with."""
    seconds: float = 5.0
    """How long to read in each of the `turns` of `data`, about."""
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Sequence lengths of `scaling`; the first is that of the other sweeps."""
    widths: tuple[int, ...] = (256, 512, 1024)
    """Model widths of `scaling`, multiples of `model.head_size`; heads and `model.mlp_width` grow with them."""
    batch_sizes: tuple[int, ...] = (8, 4, 2, 1)
    """Rows of a batch of `scaling`; the first is that of the other sweeps."""
    output: str = "runs/benchmark"
    """Directory for the result, `NAME.json`, and the picture of `scaling`."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        for name, least in (("warmup_steps", 1), ("turns", 1), ("steps_per_turn", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} {value}: must be at least {least}")
        for name, least in (("workers", 0), ("contexts", 2), ("widths", 1), ("batch_sizes", 1)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise UserError(f"--{name} {list(values)}: needs numbers of at least {least}")
        if not self.seconds > 0:
            raise UserError(f"--seconds {self.seconds}: must be greater than 0")
        comparable = {"train": "transformers", "lora": "peft"}
        if self.against is not None and comparable.get(self.what) != self.against:
            command = next(what for what, other in comparable.items() if other == self.against)
            raise UserError(f"--against {self.against}: is for 'benchmark {command}', not for 'benchmark {self.what}'")
        if self.against is not None and self.compute.dtype != "float32":
            raise UserError(f"compute.dtype: {self.compute.dtype}, but --against {self.against} compares float32")
        if self.against == "peft" and self.model_dtype != "float32":
            raise UserError(f"--model_dtype {self.model_dtype}: but --against peft compares float32")


@dataclass(frozen=True)
class DoctorConfig:
    """Look whether this machine is fit to train: versions, devices, speeds, whether the devices exchange numbers
    rightly, and common mistakes with what puts them right. Exit code 1 when something is broken."""

    run_dir: str = "runs"
    """Where runs will be written."""
    size: str = "llama_7b"
    """Model whose implementations of attention and loss are told, by the names of `model.size`."""
    sequence_length: int = 2048
    """Tokens in a row of its training."""
    seconds: float = 6.0
    """How long to measure one device, about, beside starting and compiling."""
    json: bool = False
    """Print one JSON object as the last line."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The device mesh; collectives are tried along each axis of it."""
    distributed: DistributedConfig = field(default_factory=lambda: DistributedConfig(timeout_seconds=60))
    """Several processes, all of which run this command."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"--size {self.size}: unknown{nearest(self.size, SIZES)}")
        if self.sequence_length < 1:
            raise UserError(f"--sequence_length {self.sequence_length}: must be at least 1")
        if not self.seconds > 0:
            raise UserError(f"--seconds {self.seconds}: must be greater than 0")


COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "lora": LoraConfig,
    "benchmark": BenchmarkConfig,
    "convert": ConvertConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "plan": PlanConfig,
    "plan sft": PlanSftConfig,
    "plan lora": PlanLoraConfig,
    "prepare": PrepareConfig,
    "preview": PreviewConfig,
    "preview sft": PreviewInstructionsConfig,
    "preview lora": PreviewInstructionsConfig,
    "tokenizer": TokenizerConfig,
}
"""The commands, `python -m llama_jax.<name>`, and what each can be told. A second word is a first argument with which a
command takes other settings; without it, the first of them is meant that knows all settings of the config files."""

DEFAULT_CONFIGS = {"sft": "sft_starter", "lora": "lora_starter"}
"""Bundled configs of commands whose defaults are meant for real models, for a call without arguments."""

PRESETS = {"model.size": sized}
"""Settings that stand for a whole section."""
