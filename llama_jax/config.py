"""Everything each command can be told: one frozen dataclass a command, composed of the parts' sections."""

from dataclasses import dataclass, field
from typing import Literal

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.checkpoints.config import StepChoice
from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError, nearest
from llama_jax.core.settings.composition import composed
from llama_jax.data.config import DataConfig
from llama_jax.diagnosis.config import DoctorConfig
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.config import sized
from llama_jax.planning.config import PlannedConfig
from llama_jax.supervised.config import LoraConfig, PretrainConfig, SftConfig


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
class PrepareConfig:
    """Turn text into shards of token ids for training. The same command again goes on where it stopped."""

    output: str = "prepared"
    """Directory to write; name it as `data.source` to train on it."""
    workers: int | None = None
    """Processes; None: one for each processor, 0: a thread of this process. What is written is the same."""
    deduplicate: bool = False
    """Leave out every document that differs from an earlier one in nothing but white space. Reads the source twice."""
    minimum_characters: int = 1
    """Documents with fewer characters are left out; white space at both ends does not count."""
    maximum_characters: int | None = None
    """Documents with more characters are left out; None: no bound."""
    shard_megabytes: float = 64.0
    """Text in a shard, about. Work that is stopped loses the shards it was at."""
    vocab_size: int = 2048
    """Pieces of the tokenizer that is trained on the text where `data.tokenizer` names none."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text and the tokenizer; `source`, `text_field`, `tokenizer`, `bad_records`, `max_bad_fraction` are used."""

    def __post_init__(self) -> None:
        if self.data.mixture:
            raise UserError("data.mixture: prepare takes one source; prepare each by itself and mix the directories")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers {self.workers}: must be at least 0")
        if not 0 < self.shard_megabytes < 1e6:
            raise UserError(f"--shard_megabytes {self.shard_megabytes}: must be positive and below a million")
        if self.minimum_characters < 0:
            raise UserError(f"--minimum_characters {self.minimum_characters}: must be at least 0")
        if self.maximum_characters is not None and self.maximum_characters < max(1, self.minimum_characters):
            raise UserError(
                f"--maximum_characters {self.maximum_characters}: must be at least 1 and no less than "
                f"--minimum_characters {self.minimum_characters}"
            )


@dataclass(frozen=True)
class ShownConfig:
    """How much of it `preview` shows."""

    examples: int = 3
    """Rows to show, the first that training would see."""
    characters: int = 1000
    """Characters to show of a row."""
    measured_tokens: int = 500_000
    """Tokens of rows to measure, about."""
    measured_documents: int = 1000
    """Documents of each source to measure at the most, spread evenly over it; totals are estimated from them. (Of
    instructions all are measured.)"""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        for name, least in (("examples", 0), ("characters", 1), ("measured_tokens", 1), ("measured_documents", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} {value}: must be at least {least}")


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


_FINE_TUNING: dict[str, type] = {"sft": SftConfig, "lora": LoraConfig}

COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    **_FINE_TUNING,
    "benchmark": composed(BenchmarkConfig, PretrainConfig),
    "convert": ConvertConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "plan": composed(PlannedConfig, PretrainConfig),
    **{
        f"plan {name}": composed(PlannedConfig, settings, f"Compile a run of {name} for hardware that is not here.")
        for name, settings in _FINE_TUNING.items()
    },
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
