"""What `benchmark` can be told beside the settings of `pretrain`."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, runtime_checkable

from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.model.config import AdapterConfig, ComputeConfig, ModelConfig
from llama_jax.training.config import TrainingConfig


@runtime_checkable
class MeasuredRun(Protocol):
    """What benchmarks read of the settings of `pretrain`."""

    seed: int
    dry_run: bool
    model: ModelConfig
    compute: ComputeConfig
    data: DataConfig
    training: TrainingConfig
    mesh: MeshConfig
    distributed: DistributedConfig


_LEAST = {"warmup_steps": 1, "turns": 1, "steps_per_turn": 1, "decode_rows": 1, "prompt_tokens": 1, "new_tokens": 2}
_COMPARABLE = {"transformers": ("train", "decode"), "peft": ("lora",), "llama.cpp": ("decode",)}
"""What can be compared with each other program."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure speed and memory: `benchmark train`, `benchmark lora`, `benchmark decode`, `benchmark data`, `benchmark
    scaling`. Takes every setting of `pretrain`, so that its configs fit."""

    what: Literal["train", "lora", "decode", "data", "scaling"] = field(default="train", metadata={"first_word": True})
    """`train`: the training step, on synthetic tokens. `lora`: the same of an adapter over frozen weights. `decode`:
    the engine, with one stream and with `decode_rows` at a time. `data`: the input pipeline alone. `scaling`: the step
    at several contexts, widths and batch sizes, against the FLOP formula."""
    against: Literal["transformers", "peft", "llama.cpp"] | None = None
    """Compare the step with Hugging Face transformers on eager PyTorch, `benchmark lora` with PEFT on it, `benchmark
    decode` with transformers' `generate` or with llama.cpp (extra `oracle`), on CPU in float32: each in a process of
    its own, in alternating turns. `--config benchmark_58m` is a size for `train`, `--config benchmark_lora` for
    `lora`."""
    compiled: bool = False
    """With `--against`: the other side's model goes through `torch.compile` (which needs a C++ compiler), too."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """The adapter of `benchmark lora`."""
    model_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """Type in which `benchmark lora` keeps the frozen weights."""
    weights: str | None = None
    """The model that `decode` measures, whatever `--model` of other commands takes. None: random weights of the
    architecture `model`."""
    decode_rows: int = 16
    """Streams at a time that `decode` measures, beside a single one."""
    prompt_tokens: int = 128
    """Tokens of each prompt of `decode`."""
    new_tokens: int = 128
    """Tokens that `decode` has written after each prompt."""
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

    @property
    def streams(self) -> tuple[int, ...]:
        """Streams at a time that `decode` measures."""
        return tuple(sorted({1, self.decode_rows}))

    @property
    def decode_tokens(self) -> int:
        """Tokens of each stream of `decode`."""
        return self.prompt_tokens + self.new_tokens

    @property
    def run(self) -> MeasuredRun:
        """The settings of `pretrain`, which the command has beside these (`core.settings.parser`)."""
        return cast(MeasuredRun, self)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} {value}: must be at least {least}")
        for name, least in (("workers", 0), ("contexts", 2), ("widths", 1), ("batch_sizes", 1)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise UserError(f"--{name} {list(values)}: needs numbers of at least {least}")
        if not self.seconds > 0:
            raise UserError(f"--seconds {self.seconds}: must be greater than 0")
        if self.against is not None and self.what not in _COMPARABLE[self.against]:
            commands = " and ".join(f"'benchmark {what}'" for what in _COMPARABLE[self.against])
            raise UserError(f"--against {self.against}: is for {commands}, not for 'benchmark {self.what}'")
        if self.weights is not None and self.what != "decode":
            raise UserError(f"--weights {self.weights}: is for 'benchmark decode', not for 'benchmark {self.what}'")
        if self.run.dry_run and self.what != "decode":
            raise UserError(f"--dry_run: is for 'benchmark decode', not for 'benchmark {self.what}'")
        if self.compiled and (self.against is None or self.what == "decode"):
            raise UserError("--compiled true: is of the other side of 'benchmark train' and 'lora', with --against")
        if self.against is not None and self.run.compute.dtype != "float32":
            raise UserError(f"compute.dtype: {self.run.compute.dtype}, but --against {self.against} compares float32")
        if self.against == "peft" and self.model_dtype != "float32":
            raise UserError(f"--model_dtype {self.model_dtype}: but --against peft compares float32")
