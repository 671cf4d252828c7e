"""What a command gives a run: what is trained, on which data, how it begins, how it is measured, what is saved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from llama_jax.core.arrays import PyTree
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.data.rows.streams import Rows
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState


@runtime_checkable
class Position(Protocol):
    """Where data stand between two batches: `data.rows.positions.RowsPosition`,
    `data.instructions.loader.ExamplesPosition`."""

    @property
    def row(self) -> int:
        """Rows of all global batches before."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...


@runtime_checkable
class Data(Protocol):
    """Batches without end, from a position on: `data.rows.loader.Loader`, `data.instructions.loader.ExampleLoader`."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides the batches."""
        ...

    def start(self, position: Any | None = None) -> Iterable[tuple[Rows, Any]]:
        """Batches after the one that a position was given with, each with its own position."""
        ...

    def close(self) -> None:
        """Stop preparing batches."""
        ...

    def position_of(self, records: Sequence[Mapping[str, Any]]) -> Any:
        """One position from those that all processes recorded, as JSON, after the same batch."""
        ...

    def tokens_before(self, position: Any) -> int:
        """Tokens in the global batches before a position."""
        ...

    def progress_record(self, position: Any) -> MetricsRecord:
        """What a position of all processes tells: epochs, and what was dropped."""
        ...


@dataclass(frozen=True)
class Task:
    """What a command gives to `train`."""

    program: Program
    data: Data
    fresh: Callable[[], tuple[TrainState, PyTree]]
    """State and frozen parameters of a run that begins."""
    evaluate: Callable[[TrainState, PyTree], MetricsRecord]
    """Held-out metrics, `validation_loss` among them."""
    files: Mapping[str, bytes]
    """Saved with each checkpoint, by path: `model/config.json`, the tokenizer."""
    hashes: Mapping[str, str]
    """Kept in the manifest, beside those of configuration and pipeline."""
    before_training: Callable[[int, TrainState, PyTree], None] = lambda step, state, frozen: None
    """Called with the step that the run resumes from (0: it begins), before the next one is made."""
    params_item: str = "params"
    """Name of the checkpoint item with the parameters."""
    is_saved: Callable[[str], bool] = lambda path: True
    """Which frozen parameters are saved with those that train, by path."""
    unsaved_params: PyTree = field(default_factory=dict)
    """The frozen parameters that are not."""
