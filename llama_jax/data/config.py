"""Settings of the data pipeline, and of the commands that train a tokenizer and preview data."""

import math
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, TypeAlias

from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes rows of tokens."""

    source: str = "pydoc"
    """`pydoc`: the documentation of Python's standard library, present on every machine. Else a file, a glob, or a
    directory with all below it: .txt, .md, .jsonl, .json, .parquet or .array_record; a directory that `prepare` wrote;
    `tfds:NAME[/CONFIG][:SPLIT]` or `hf:NAME[/CONFIG][:SPLIT]`. A text file is cut at blank lines into documents of at
    most 16 KiB; elsewhere each record is one."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Several sources instead of `source`: pairs of a source, written as there, and its weight, its share of the rows
    once the weights are divided by their sum. Each source has epochs of its own."""
    text_field: str = "text"
    """Field of a record that holds the text."""
    tokenizer: str | None = None
    """A tokenizer file: tokenizer.json, sentencepiece or tiktoken (.model), llama2.c (.bin), or a directory with one.
    None: that of the prepared shards, if they are the source; else one with `model.vocab_size` pieces is trained on the
    training documents and kept in the run directory."""
    sequence_length: int = 256
    """Tokens in a row."""
    validation_fraction: float = 0.02
    """Share of whole documents of each source held out for validation; at least one document is."""
    streams: int = 64
    """Logical streams the documents are dealt to. Each is shuffled and packed by itself and read by one host, so that
    the order of rows does not depend on the number of hosts. Must divide the batch size or be a multiple of it; with
    several hosts and a batch ramp, let no batch be smaller."""
    bad_records: Literal["skip", "fail"] = "skip"
    """What happens at a record that cannot be used: not UTF-8, not JSON, without text and the like. `skip` counts it by
    reason (`dropped_records` in the metrics) and names the first few; `fail` ends the run."""
    max_bad_fraction: float = 0.001
    """Share of the documents of a source that may be skipped; more end the run, once 1,000 documents of the source, or
    all, have been read."""
    workers: int = 0
    """Processes of each host that read and tokenize; 0: a thread of the training process does. The rows are the
    same."""
    prefetch_batches: int = 4
    """Batches prepared ahead of the training step."""

    def __post_init__(self) -> None:
        _check_shared(self, streams=1, prefetch_batches=1, workers=0)
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction: {self.validation_fraction} must lie between 0 and 1")

    @property
    def weighted_sources(self) -> tuple[tuple[str, float], ...]:
        """The sources to read and their weights, which need not sum to 1."""
        return _weighted_sources(self.source, self.mixture)


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
class ShownConfig:
    """Show the first rows that training would see, as text, and measure the data. Takes every setting of the command
    whose data it shows, so that its configs fit; writes nothing."""

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


RecordFormat = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text"]
Template = Literal["alpaca", "alpaca_newline", "chatml", "llama2", "llama3", "plain", "model"]


@dataclass(frozen=True)
class InstructionDataConfig:
    """Where instructions and answers come from and how they become rows of tokens."""

    source: str = "starter"
    """`starter`: a small set written for this project. Else a file, a glob, or a directory with all below it: .jsonl,
    .json, .parquet, .array_record, .txt or .md; `tfds:NAME[/CONFIG][:SPLIT]` or `hf:NAME[/CONFIG][:SPLIT]`."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Several sources instead of `source`: pairs of a source, written as there, and its weight, its share of the
    examples once the weights are divided by their sum. Each source has epochs of its own."""
    format: Literal["auto", "pairs", RecordFormat] = "auto"
    """What the fields of a record are. `alpaca`: instruction, input, output (and system, history); `sharegpt`:
    conversations of {from, value}; `messages`: messages of {role, content}; `prompt_completion`: prompt, completion;
    `pairs`: chosen and rejected, as for preferences, of which chosen is learned; `text`: text, all of which is learned.
    `auto` tells them apart by their fields, for each source by itself."""
    split: tuple[float, ...] = ()
    """Shares of the stages of a pipeline, such as [2, 4, 4] for 20 % of the prompts to SFT, 40 % to a reward model and
    40 % to PPO. By a hash of the prompt, so that no prompt is in two of them. Empty: all is taken."""
    stage: int | None = None
    """Which of the shares of `split` to take, from 1."""
    template: Literal["auto", Template] = "auto"
    """How a conversation is laid out. `alpaca` is Stanford Alpaca's, `alpaca_newline` has an end of line after
    "### Response:"; `plain` puts nothing between prompt and answer; `model` is the checkpoint's own chat template.
    `auto`: `model` if the checkpoint has one, else `alpaca`."""
    template_date: str | None = None
    """Date, such as 2026-11-27, for a chat template that asks for the clock. null: the day on which the run begins.
    Either is kept with the run and with all that is made of it, so that the model is asked as it was trained."""
    train_on_prompt: bool = False
    """Let prompts bear loss too, not only answers."""
    sequence_length: int = 512
    """Tokens in a row."""
    packing: Literal["none", "pack"] = "pack"
    """`pack` lays as many whole examples into a row as fit; none sees another. `none`: one example a row."""
    group_by_length: bool = False
    """Without packing, put examples of similar length into a batch."""
    pad_multiple: int = 128
    """Without packing, the rows of a batch are as long as its longest example, rounded up to a multiple of this many
    tokens. Each length is compiled once."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What happens to an example of more tokens than a row has: it is cut, and then has no end of sequence to learn, or
    left out. Either is counted."""
    validation_fraction: float = 0.05
    """Share of the records of each source held out for validation; 0: none is."""
    validation_examples: int | None = None
    """Number of records, of all sources together, held out instead of a share."""
    validation_source: str | None = None
    """A source to validate on, instead of holding out records of the others."""
    bad_records: Literal["skip", "fail"] = "skip"
    """What happens at a record that cannot be used: not JSON, without an answer and the like. `skip` counts it by
    reason (`dropped_records` in the metrics) and names the first few; `fail` ends the run."""
    max_bad_fraction: float = 0.01
    """Share of the records of a source that may be skipped; more end the run. Examples that have nothing to learn
    within `sequence_length` are counted, too, but not in this share."""
    prefetch_batches: int = 4
    """Batches prepared ahead of the training step."""

    def __post_init__(self) -> None:
        _check_shared(self, pad_multiple=1, prefetch_batches=1)
        _check_held_out(self)
        check_stage(self.split, self.stage)
        if self.group_by_length and self.packing == "pack":
            raise UserError("data.group_by_length: contradicts data.packing pack, which fills rows; add packing none")

    @property
    def weighted_sources(self) -> tuple[tuple[str, float], ...]:
        """The sources to read and their weights, which need not sum to 1."""
        return _weighted_sources(self.source, self.mixture)


@dataclass(frozen=True)
class PreferenceDataConfig:
    """Where answers that are compared, judged or scored come from, and how they become rows of tokens."""

    source: str = "starter"
    """`starter`: a small set written for this project. Else a file, a glob, or a directory with all below it, or
    `tfds:…` or `hf:…`, as for instructions. Formats are told apart by their fields. Pairs: chosen and rejected, each a
    text, turns, or a whole conversation, with the prompt as prompt, conversations, messages, instruction (with input),
    question or input, or in both (as Anthropic's HH-RLHF), and maybe a margin. Judged answers: prompt, completion and
    label (true or false), or messages and label. Scored ones: user_input or prompt, completion and score."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Several sources instead of `source`: pairs of a source, written as there, and its weight, its share of the
    examples once the weights are divided by their sum. Each source has epochs of its own."""
    split: tuple[float, ...] = ()
    """Shares of the stages of a pipeline, as for instructions."""
    stage: int | None = None
    """Which of the shares of `split` to take, from 1."""
    template: Literal["auto", Template] = "auto"
    """How a conversation is laid out, as for instructions."""
    template_date: str | None = None
    """Date, such as 2026-11-27, for a chat template that asks for the clock. null: the day on which the run begins."""
    sequence_length: int = 1024
    """Tokens in a row, which holds all answers of an example, each behind a prompt of its own."""
    max_length: int | None = None
    """Tokens of a prompt with one answer, at the most; null: what each has of a row, half of it for pairs."""
    overlong: Literal["drop", "keep_start", "keep_end"] = "drop"
    """What happens to an example with a longer one: it is left out, or that one is cut to its first tokens (and has no
    end of the answer to learn) or to its last ones. Either is counted."""
    pairs_per_row: int = 1
    """Examples that a row may hold. 1: a row is as long as the batch's longest, rounded up to `pad_multiple`. More:
    rows of `sequence_length` are filled with as many as fit, up to so many."""
    pad_multiple: int = 128
    """With one example a row, rows are rounded up to a multiple of so many tokens. Each length is compiled once."""
    group_by_length: bool = False
    """With one example a row, put those of similar length into a batch."""
    validation_fraction: float = 0.05
    """Share of the records of each source held out for validation; 0: none is. What is left is never of a prompt that
    is held out."""
    validation_examples: int | None = None
    """Number of records, of all sources together, held out instead of a share."""
    validation_source: str | None = None
    """A source to validate on, instead of holding out records of the others."""
    bad_records: Literal["skip", "fail"] = "skip"
    """What happens at a record that cannot be used, such as one without a rejected answer. `skip` counts it by reason
    (`dropped_records` in the metrics) and names the first few; `fail` ends the run."""
    max_bad_fraction: float = 0.01
    """Share of the records of a source that may be skipped; more end the run. Good records of which nothing is learned,
    such as equal answers, are counted, too, but not in this share."""
    prefetch_batches: int = 4
    """Batches prepared ahead of the training step."""

    def __post_init__(self) -> None:
        _check_shared(self, pad_multiple=1, prefetch_batches=1, pairs_per_row=1)
        _check_held_out(self)
        check_stage(self.split, self.stage)
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"data.max_length: {self.max_length} is too short; use at least 2 tokens")
        if self.group_by_length and self.pairs_per_row > 1:
            raise UserError("data.group_by_length: contradicts data.pairs_per_row, which fills rows")

    @property
    def packing(self) -> Literal["none", "pack"]:
        """Whether rows are filled with several examples."""
        return "none" if self.pairs_per_row == 1 else "pack"

    @property
    def weighted_sources(self) -> tuple[tuple[str, float], ...]:
        """The sources to read and their weights, which need not sum to 1."""
        return _weighted_sources(self.source, self.mixture)


ExampleDataConfig: TypeAlias = InstructionDataConfig | PreferenceDataConfig


def _check_held_out(config: ExampleDataConfig) -> None:
    if config.template_date is not None and not _is_date(config.template_date):
        raise UserError(f"data.template_date: {config.template_date!r} is not a date such as 2026-11-27")
    if not 0 <= config.validation_fraction < 1:
        raise UserError(f"data.validation_fraction: {config.validation_fraction} must be at least 0 and below 1")
    if config.validation_examples is not None and config.validation_examples < 0:
        raise UserError(f"data.validation_examples: {config.validation_examples} must not be negative")
    if config.validation_examples is not None and config.validation_source is not None:
        raise UserError("data.validation_examples: contradicts data.validation_source; give one of the two")


def check_stage(split: tuple[float, ...], stage: int | None) -> None:
    """Refuse shares that are none, and a stage that has no share.

    Raises:
        UserError: names the setting.
    """
    if not all(math.isfinite(share) and share >= 0 for share in split) or (split and not sum(split)):
        raise UserError(f"data.split: {list(split)} must be shares of at least 0, not all of them 0")
    if (stage is None) != (not split):
        raise UserError("data.stage: goes with data.split, whose shares it counts; give both or none")
    if stage is not None and not (1 <= stage <= len(split) and split[stage - 1]):
        raise UserError(f"data.stage: {stage} must be the number of one of the shares {list(split)}, from 1")


def _weighted_sources(source: str, mixture: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    return tuple((source, weight) for source, weight in mixture) or ((source, 1.0),)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_shared(config: DataConfig | InstructionDataConfig | PreferenceDataConfig, **least: int) -> None:
    """What holds for either kind of data; `least` has the least value of some fields."""
    _check_mixture(config.source, config.mixture, type(config).source)
    if config.sequence_length < 2:
        raise UserError(f"data.sequence_length: {config.sequence_length} is too short; use at least 2 tokens")
    if not 0 <= config.max_bad_fraction <= 1:
        raise UserError(f"data.max_bad_fraction: {config.max_bad_fraction} must lie between 0 and 1")
    for name, bound in least.items():
        if (value := getattr(config, name)) < bound:
            raise UserError(f"data.{name}: {value} must be at least {bound}")


def _check_mixture(source: str, mixture: tuple[tuple[str, float], ...], default: str) -> None:
    if mixture and source != default:
        raise UserError(
            f"data.source: {source} contradicts data.mixture, which names other sources; give one of the two "
            "(--data.mixture '[]' takes that of a config away)"
        )
    seen: set[str] = set()
    for name, weight in mixture:
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"data.mixture: weight {weight} of {name!r} must be positive; leave the source out")
        if name in seen:
            raise UserError(f"data.mixture: {name!r} is named twice; add its weights up")
        seen.add(name)
