"""What `benchmark` can be told beside the settings of `pretrain`."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, runtime_checkable

from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig, PreferenceDataConfig
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


@runtime_checkable
class MeasuredPairs(Protocol):
    """What benchmarks read of the settings of `dpo`."""

    seed: int
    model: str | None
    step: int | Literal["best"] | None
    tokenizer: str | None
    method: str
    model_dtype: str
    loss: str
    beta: float
    sft_weight: float
    lora: AdapterConfig
    compute: ComputeConfig
    data: PreferenceDataConfig
    training: TrainingConfig
    mesh: MeshConfig
    distributed: DistributedConfig


_LEAST = {"warmup_steps": 1, "turns": 1, "steps_per_turn": 1, "decode_rows": 1, "prompt_tokens": 1, "new_tokens": 2}
_COMPARABLE = {"transformers": ("train", "decode"), "peft": ("lora",), "llama.cpp": ("decode",)}
"""What can be compared with each other program."""


_IN_PYTORCH = ("train", "lora", "decode")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure speed and memory: `benchmark train`, `benchmark lora`, `benchmark decode`, `benchmark attention`,
    `benchmark data`, `benchmark scaling`. Takes every setting of `pretrain`, so that its configs fit."""

    what: Literal["train", "lora", "decode", "attention", "data", "scaling"] = field(
        default="train", metadata={"first_word": True}
    )
    """`train`: the training step, on synthetic tokens. `lora`: the same of an adapter over frozen weights. `decode`:
    the engine, with one stream and with `decode_rows` at a time. `attention`: its implementations, at the shapes of a
    microbatch. `data`: the input pipeline alone. `scaling`: the step
    at several contexts, widths and batch sizes, against the FLOP formula."""
    against: Literal["transformers", "peft", "llama.cpp"] | None = None
    """Compare the step with Hugging Face transformers on eager PyTorch, `benchmark lora` with PEFT on it, `benchmark
    decode` with transformers' `generate` or with llama.cpp (extra `oracle`), on CPU in float32: each in a process of
    its own, in alternating turns. `--config benchmark_58m` is a size for `train`, `--config benchmark_lora` for
    `lora`."""
    program: Literal["llama_jax", "pytorch"] = "llama_jax"
    """`pytorch`: what `train`, `lora` and `decode` measure is the same model in plain PyTorch, by itself and on the
    device at hand; on a GPU through `torch.compile`, in automatic mixed precision where `compute.dtype` is bfloat16."""
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
    profile_steps: int = 0
    """Steps that `train` and `lora` trace after that, to tell their ten heaviest operations."""
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
    def is_in_turns(self) -> bool:
        """This process must not start JAX: sides in processes of their own are measured, or PyTorch is."""
        return self.against is not None or self.what == "decode" or self.program == "pytorch"

    @property
    def name(self) -> str:
        """Of the result."""
        if self.program == "pytorch":
            return f"{self.what}_pytorch"
        against = "" if self.against is None else f"_against_{self.against}{'_compiled' * self.compiled}"
        return f"{self.what}{against}"

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
        if self.program == "pytorch" and (self.what not in _IN_PYTORCH or self.against or self.weights):
            raise UserError(
                f"--program pytorch: is for {', '.join(_IN_PYTORCH)} with random weights, and not for "
                f"'benchmark {self.what}', --against or --weights"
            )
        if self.profile_steps < 0:
            raise UserError(f"--profile_steps {self.profile_steps}: must be at least 0")
        if self.profile_steps and (self.what not in ("train", "lora") or self.is_in_turns):
            raise UserError(f"--profile_steps {self.profile_steps}: is for 'benchmark train' and 'lora' by themselves")
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


@dataclass(frozen=True)
class DpoBenchmarkConfig:
    """Measure `dpo` beside TRL's DPOTrainer on PEFT (extra `oracle`): the same pairs and adapter on CPU in float32, log
    p under the reference model found before, each in a process of its own, in alternating turns. Takes every setting of
    `dpo`; `--config benchmark_dpo` is a size for it."""

    against: Literal["trl"] = "trl"
    """The other side."""
    checkpointing: bool = False
    """Let the other side find activations a second time on the way back, as TRL does by default: slower, and in less
    memory."""
    pairs: int = 24
    """Pairs of a turn, at least: those of the first batches, whole ones, of a run."""
    turns: int = 5
    """Turns of each side; the result is their median."""
    output: str = "runs/benchmark"
    """Directory for the result, `NAME.json`."""
    json: bool = False
    """Print one JSON object as the last line."""

    @property
    def is_in_turns(self) -> bool:
        """See `BenchmarkConfig`."""
        return True

    @property
    def name(self) -> str:
        """Of the result."""
        return f"dpo_against_{self.against}{'_checkpointing' * self.checkpointing}"

    @property
    def run(self) -> "MeasuredPairs":
        """The settings of `dpo`, which the command has beside these (`core.settings.parser`)."""
        return cast("MeasuredPairs", self)

    def __post_init__(self) -> None:
        run, compared = self.run, f"--against {self.against}"
        for name in ("pairs", "turns"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
        if run.compute.dtype != "float32" or run.model_dtype != "float32":
            raise UserError(
                f"compute.dtype {run.compute.dtype}, model_dtype {run.model_dtype}: {compared} is in float32"
            )
        for name, value, needed in (
            ("method", run.method, "lora"),
            ("loss", run.loss, "sigmoid"),
            ("sft_weight", run.sft_weight, 0.0),
            ("training.microbatches", run.training.microbatches, 1),
        ):
            if value != needed:
                raise UserError(f"{name}: {value}, but {compared} is for {needed}")
        if run.data.overlong == "keep_end":
            # The two sequences of a pair then keep parts of the prompt that differ, which TRL has no field for.
            raise UserError(f"data.overlong: keep_end, but {compared} needs one prompt of both answers; use keep_start")
        if run.model is None:
            raise UserError(f"model: {compared} needs one that both sides open, --model PATH")


@dataclass(frozen=True)
class RougeConfig:
    """Measure how fast Self-Instruct's filter finds the most similar of a pool by ROUGE-L, beside the package
    rouge-score (extra `eval`)."""

    pools: tuple[int, ...] = (10_000, 52_000)
    """Instructions in the pool."""
    candidates: int = 1_000
    """Instructions that are compared with the pool, one after the other."""
    seed: int = 0
    """Seed of the texts."""
    output: str = "runs/benchmark"
    """Directory for the result, rouge.json."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        if not self.pools or min(self.pools) < 1:
            raise UserError(f"--pools {list(self.pools)}: needs numbers of at least 1")
        if self.candidates < 1:
            raise UserError(f"--candidates {self.candidates}: must be at least 1")
