"""A run small enough to be trained, broken and resumed many times a test: one narrow layer, on counted ids."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import acknowledged_steps
from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MeshConfig, TrackingConfig
from llama_jax.core.recording.metrics import read_metrics
from llama_jax.model.config import LlamaConfig
from llama_jax.objectives.next_token import next_token
from llama_jax.runs.config import RunConfig
from llama_jax.runs.methods import all_parameters, build_program
from llama_jax.runs.resuming import opened_run, with_schedule
from llama_jax.runs.supervised_run import Task, train
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState

LENGTH, ROWS = 8, 8
STEPS = 8
ARCHITECTURE = LlamaConfig(32, 8, 8, 1, 2, 2, 4, LENGTH, vocab_multiple=8)
TIMING = {
    "step_seconds", "data_wait_seconds", "tokens_per_second", "tokens_per_second_per_device", "goodput", "wall_seconds",
    "time",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The position of `Counted`."""

    step: int = 0
    row: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "row": self.row}


@dataclass
class Counted:
    """Batches that their numbers decide."""

    fingerprint: str = "counted"
    before_batch: Callable[[int], None] = lambda step: None
    """Called before each batch is given, with its number from 1; may end the run in any way."""
    closed: bool = False

    def start(self, position: Place | None = None) -> Iterator[tuple[dict[str, np.ndarray], Place]]:
        place = position or Place()
        while True:
            place = Place(place.step + 1, place.row + ROWS)
            self.before_batch(place.step)
            ids = np.random.RandomState(place.step).randint(1, 32, (ROWS, LENGTH + 1)).astype(np.int32)
            row = {name: np.stack([array] * ROWS) for name, array in TokenBatch.empty_row(LENGTH).items()}
            row |= {"tokens": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": row["segment_ids"] + 1}
            yield {**row, "loss_weights": row["loss_weights"] + 1}, place

    def close(self) -> None:
        self.closed = True

    def position_of(self, records: Sequence[Mapping[str, Any]]) -> Place:
        return Place(**records[0])

    def tokens_before(self, position: Place) -> int:
        return position.row * LENGTH

    def progress_record(self, position: Place) -> dict[str, Any]:
        return {"epochs": {"counted": position.step / 10}}


@functools.cache
def program_of(training: TrainingConfig, replicas: int = 1) -> Program:
    """The program of a run, compiled once for all lives."""
    config = RunConfig(training=training, mesh=MeshConfig(data=replicas))
    return build_program(config, all_parameters(), next_token, ARCHITECTURE, LENGTH, jax.devices()[:replicas])


@dataclass
class Toy:
    """A run in a directory, which a test starts as often as it likes."""

    path: Path
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(steps=STEPS, batch_size=ROWS, warmup_steps=2, evaluate_every=2)
    )
    checkpoints: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=3, keep_every=1))
    losses: Mapping[int, float] = field(default_factory=dict)
    """What the evaluation at a step gives, in place of 1 / step."""
    replicas: int = 1
    """Devices, each with all parameters."""
    when_evaluated: Callable[[TrainState], None] = lambda state: None
    """Called with the state of each evaluation."""
    before_training: list[int] = field(default_factory=list)
    """The step that each life began at."""

    def train(self, data: Counted | None = None, **changes: Any) -> bool:
        """Start the command."""
        config = RunConfig(
            run_dir=str(self.path),
            training=self.training,
            checkpoints=self.checkpoints,
            tracking=TrackingConfig(tensorboard=False),
        )
        config = with_schedule(replace(config, **changes))
        program = program_of(config.training, self.replicas)

        def evaluate(state, frozen) -> dict[str, Any]:
            step = int(state.batches)
            self.when_evaluated(state)
            return {"validation_loss": self.losses.get(step, 1 / step)}

        task = Task(
            program=program,
            data=data or Counted(),
            fresh=lambda: program.init(jax.random.key(0)),
            evaluate=evaluate,
            files={"model/config.json": b"{}"},
            hashes={},
            before_training=lambda step, state, frozen: self.before_training.append(step),
        )
        with jax.set_mesh(program.mesh), opened_run(config, "toy") as run:
            return train(config, run, task)

    def metrics(self) -> list[dict[str, Any]]:
        """The records, without what two runs need not agree on."""
        records = read_metrics(self.path / "metrics.jsonl")
        return [{name: value for name, value in record.items() if name not in TIMING} for record in records]


class KilledError(Exception):
    """Stands for whatever ends a process between two steps."""


def killed_before(step: int) -> Counted:
    """Data whose run ends before a step, without a word to anybody."""

    def kill(number: int) -> None:
        if number == step:
            raise KilledError

    return Counted(before_batch=kill)


def steps(toy: Toy) -> list[int]:
    return acknowledged_steps(epath.Path(toy.path / "checkpoints"))


def checkpoint(toy: Toy, step: int) -> tuple[dict, dict[str, bytes]]:
    """(what a checkpoint says of its arrays, its data positions)."""
    folder = toy.path / "checkpoints" / str(step)
    leaves = json.loads((folder / "manifest.json").read_text())["leaves"]
    return leaves, {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


def assert_same(toy: Toy, expected: Toy) -> None:
    """The same records and the same last checkpoint."""
    assert toy.metrics() == expected.metrics()
    assert checkpoint(toy, STEPS) == checkpoint(expected, STEPS)


def damage(toy: Toy, step: int) -> None:
    """Change a byte of the largest file of the parameters."""
    files = [path for path in (toy.path / "checkpoints" / str(step) / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"\x01")
