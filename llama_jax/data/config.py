"""What can be told to the data pipeline."""

from dataclasses import dataclass

from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes rows of tokens."""

    source: str = "pydoc"
    """`pydoc`: the documentation of Python's standard library, present on every machine. Else .txt, .md or .jsonl
    files: a path, a glob, or a directory with all below it. Text files are cut at blank lines into documents of at most
    16 KiB; in a .jsonl file each line is one."""
    text_field: str = "text"
    """Field of a JSONL record that holds the text."""
    tokenizer: str | None = None
    """A sentencepiece model (.model) or a llama2.c tokenizer (.bin). None trains one with `model.vocab_size` pieces on
    the training documents and keeps it in the run directory."""
    sequence_length: int = 256
    """Tokens in a row."""
    validation_fraction: float = 0.02
    """Share of whole documents held out for validation; at least one document is."""
    streams: int = 64
    """Logical streams the documents are dealt to. Each is shuffled and packed by itself and read by one host, so that
    the order of rows does not depend on the number of hosts. Must divide the batch size or be a multiple of it; with
    several hosts and a batch ramp, let no batch be smaller."""
    prefetch_batches: int = 4
    """Batches prepared ahead of the training step."""

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise UserError(f"data.sequence_length: {self.sequence_length} is too short; use at least 2 tokens")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction: {self.validation_fraction} must lie between 0 and 1")
        if self.streams < 1:
            raise UserError(f"data.streams: {self.streams} must be at least 1")
        if self.prefetch_batches < 1:
            raise UserError(f"data.prefetch_batches: {self.prefetch_batches} must be at least 1")
