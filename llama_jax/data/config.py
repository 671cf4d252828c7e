"""What can be told to the data pipeline."""

import math
from dataclasses import dataclass
from typing import Literal

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
        self._check_mixture()
        if self.sequence_length < 2:
            raise UserError(f"data.sequence_length: {self.sequence_length} is too short; use at least 2 tokens")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction: {self.validation_fraction} must lie between 0 and 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction: {self.max_bad_fraction} must lie between 0 and 1")
        for name, least in (("streams", 1), ("prefetch_batches", 1), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"data.{name}: {value} must be at least {least}")

    @property
    def weighted_sources(self) -> tuple[tuple[str, float], ...]:
        """The sources to read and their weights, which need not sum to 1."""
        return tuple((source, weight) for source, weight in self.mixture) or ((self.source, 1.0),)

    def _check_mixture(self) -> None:
        if self.mixture and self.source != DataConfig.source:
            raise UserError(
                f"data.source: {self.source} contradicts data.mixture, which names other sources; give one of the two "
                "(--data.mixture '[]' takes that of a config away)"
            )
        seen: set[str] = set()
        for source, weight in self.mixture:
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"data.mixture: weight {weight} of {source!r} must be positive; leave the source out")
            if source in seen:
                raise UserError(f"data.mixture: {source!r} is named twice; add its weights up")
            seen.add(source)
