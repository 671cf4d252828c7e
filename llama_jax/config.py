"""Everything each command can be told: one frozen dataclass a command, composed of the parts' sections."""

from dataclasses import dataclass, field
from typing import Literal

from llama_jax.checkpoints.config import StepChoice
from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError, nearest
from llama_jax.data.config import ShownConfig, TokenizerConfig
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.inference.config import SamplingConfig
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
class UseConfig:
    """What every command that uses a model can be told."""

    model: str | None = None
    """A run directory (its newest checkpoint), a Hugging Face or Meta directory, a GGUF or llama2.c file, or a name on
    the Hugging Face hub; a run of lora or a directory of PEFT, with the base that it names. None: the newest run under
    runs/."""
    step: StepChoice | None = None
    """Checkpoint of the run to take; `best`: that of the lowest validation loss; None: the newest that verifies."""
    adapters: tuple[str, ...] = ()
    """Runs of lora, or directories of PEFT, to put over the model, as a list: '[runs/lora, other]'."""
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
    """Continue a prompt. Streams to the terminal, unless JSON is asked for. With several adapters each prompt is
    continued by each of them, side by side in one batch."""

    prompt: str = "The "
    """Text to continue; an empty one starts from the beginning-of-sequence token alone."""
    prompts: str | None = None
    """File with a prompt a line, continued together in one batch instead of `prompt`."""
    chat: bool = False
    """The prompt is what a user says: put the model's chat template around it, and print the answer alone."""
    special_tokens: bool = True
    """Read control tokens written in the prompt, such as <|im_start|>, as such; false: as ordinary text, as they always
    are with `chat`."""
    seed: int = 0
    """Seed of the random choices."""


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


@dataclass(frozen=True)
class EvaluateConfig(UseConfig):
    """Measure a model."""

    task: str = "perplexity"
    """What to measure. `perplexity` of text; `multiple_choice` (ARC, HellaSwag, MMLU and the like); `last_word`
    (LAMBADA); `exact_match` (GSM8K); `instructions`: answers compared with references; `lm_eval:NAME[,NAME]`: tasks of
    lm-evaluation-harness (extra `eval`)."""
    data: str | None = None
    """What to measure on. Perplexity: `pydoc`, a file, a directory or a glob of .txt, .md or .jsonl files; None: the
    documents the run held out. Other tasks: a .jsonl file, a .json file with one array, or `tfds:NAME:SPLIT`."""
    text_field: str = "text"
    """Field of a record that holds the text (perplexity, last_word)."""
    limit: int | None = None
    """Documents to measure on at the most, the first ones; None: all."""
    sequence_length: int | None = None
    """Tokens in a row at the most; None: the model's context, and for perplexity as the run was trained."""
    stride: int | None = None
    """Perplexity by a sliding window: each window of `sequence_length` tokens goes on by so many, and only those are
    scored, so that all but the first have much context. None: rows of packed documents, much faster."""
    num_fewshot: int = 0
    """Solved examples before each document (multiple_choice, last_word, exact_match, lm_eval): the first ones of the
    data, which then are not measured on."""
    fewshot_data: str | None = None
    """Records to take the examples from instead, drawn with `seed`; the same examples for all documents."""
    max_new_tokens: int = 256
    """Tokens of an answer at the most (exact_match, instructions). Answers are greedy."""
    prompt_format: Literal["auto", "alpaca", "chat"] = "auto"
    """How instructions are put: Stanford Alpaca's template, or the model's chat template; `auto`: the latter if it has
    one."""
    judge: str | None = None
    """`package.module:function` that grades the answers to instructions; called with instruction, input, reference and
    answer, it gives a number."""
    include_path: str | None = None
    """Directory of task files (YAML) for lm_eval."""
    output: str | None = None
    """File NAME.json for the result, beside it NAME.samples.jsonl with each document and answer. The same command again
    goes on where it was stopped."""
    seed: int = 0
    """Seed of the choice of examples."""
    batch_size: int = 16
    """Rows at a time, rounded up to what the mesh divides."""

    def __post_init__(self) -> None:
        if len(self.adapters) > 1:
            raise UserError(f"--adapters {list(self.adapters)}: one at a time is measured")
        family = self.task.partition(":")[0]
        if family not in EVALUATION_TASKS or (family == "lm_eval") == (self.task == family):
            known = ", ".join(name if name != "lm_eval" else "lm_eval:NAME" for name in EVALUATION_TASKS)
            raise UserError(f"--task {self.task}: unknown; there are {known}{nearest(family, EVALUATION_TASKS)}")
        for name, tasks in _ONLY_FOR.items():
            if family not in tasks and getattr(self, name) != getattr(EvaluateConfig, name):
                raise UserError(f"--{name}: is for {' and '.join(tasks)}, not for {family}")
        if self.data is None and family not in ("perplexity", "lm_eval"):
            raise UserError(f"--data: needed by {family}: a .jsonl or .json file, or tfds:NAME:SPLIT")
        if self.fewshot_data is not None and self.num_fewshot == 0:
            raise UserError("--fewshot_data: set --num_fewshot too, the number of examples to take from it")
        for name, least in (("limit", 1), ("stride", 1), ("batch_size", 1), ("num_fewshot", 0), ("sequence_length", 2)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"--{name} {value}: must be at least {least}")


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


EVALUATION_TASKS = ("perplexity", "multiple_choice", "last_word", "exact_match", "instructions", "lm_eval")
_ONLY_FOR = {
    "data": ("perplexity", "multiple_choice", "last_word", "exact_match", "instructions"),
    "text_field": ("perplexity", "last_word"),
    "stride": ("perplexity",),
    "num_fewshot": ("multiple_choice", "last_word", "exact_match", "lm_eval"),
    "fewshot_data": ("multiple_choice", "last_word", "exact_match"),
    "max_new_tokens": ("exact_match", "instructions"),
    "prompt_format": ("instructions",),
    "judge": ("instructions",),
    "include_path": ("lm_eval",),
}
"""Settings of an evaluation that mean nothing to other tasks."""


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
