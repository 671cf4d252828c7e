"""Settings of `benchmark prepare`."""

from dataclasses import dataclass, field
from typing import Literal

from llama_jax.core.errors import UserError

Task = Literal["tokenization", "near_duplicates"]


@dataclass(frozen=True)
class MadeDocuments:
    """Documents that are made to measure with: words of the documentation of Python's standard library."""

    documents: int = 10_000
    """How many."""
    words: int = 600
    """Words of a document, on average."""
    near_duplicates: float = 0.1
    """Share of documents that are another one with some words changed."""
    changed: float = 0.01
    """Share of the words of such a document that are changed, at least one."""
    seed: int = 0
    """Seed of all of them."""

    def __post_init__(self) -> None:
        for name in ("documents", "words"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--made.{name} {value}: must be at least 1")
        for name in ("near_duplicates", "changed"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"--made.{name} {value}: must be from 0 to 1")


@dataclass(frozen=True)
class PrepareBenchmarkConfig:
    """Measure `prepare` on documents that are made: the rate of each of its steps on one core; or the whole command
    beside datatrove doing the same."""

    against: Literal["datatrove"] | None = None
    """Compare with datatrove (extra `datatrove`): each side a command of its own, in alternating turns, on `workers`
    processes. On Linux."""
    tasks: tuple[Task, ...] = ("tokenization", "near_duplicates")
    """What is compared. `tokenization`: from JSON lines to ids. `near_duplicates`: from JSON lines to documents without
    near-duplicates by MinHash, which are written as JSON there, and as ids of a small tokenizer here."""
    tokenizer: str | None = None
    """The tokenizer, with `--against` a `tokenizer.json`. None: a small one is trained on some of the documents."""
    workers: int = 2
    """Processes of each side, with `--against`."""
    turns: int = 3
    """Turns of each side; the result is their median."""
    machines: int | None = None
    """Also plan the corpus of LLaMA (arXiv:2302.13971, table 1) on so many machines, by the rates of the steps."""
    cores: int = 32
    """Cores of each of these machines."""
    made: MadeDocuments = field(default_factory=MadeDocuments)
    """The documents."""
    folder: str | None = None
    """Folder for the documents and for what is made of them, which is removed again; None: a temporary one."""
    output: str = "runs/benchmark"
    """Directory for the result, `NAME.json`."""
    json: bool = False
    """Print one JSON object as the last line."""

    is_in_turns = True

    @property
    def name(self) -> str:
        """Of the result."""
        return "prepare" if self.against is None else f"prepare_against_{self.against}"

    def __post_init__(self) -> None:
        for name in ("workers", "turns", "machines", "cores"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
        if self.machines is not None and self.against is not None:
            raise UserError(f"--machines {self.machines}: needs the rates of steps, which --against does not measure")
        if not self.tasks:
            raise UserError("--tasks []: needs at least one of tokenization, near_duplicates")
        if self.against is not None and "tokenization" in self.tasks and self.tokenizer is None:
            raise UserError(f"--against {self.against}: both sides need the same tokenizer; --tokenizer tokenizer.json")
