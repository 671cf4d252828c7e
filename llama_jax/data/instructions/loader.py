"""Examples to batches: the rows of each step, this process's share of them, and the exact position.

Every process knows all rows, so any number of them reads the same batches, and a run may be resumed with another.
Independent of devices."""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.data.config import ExampleDataConfig, InstructionDataConfig
from llama_jax.data.instructions.example_data import ExampleData
from llama_jax.data.instructions.examples import InstructionData
from llama_jax.data.instructions.records import Turn
from llama_jax.data.instructions.rows import ROWS_VERSION, Planner, padded_length, row_of
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.rows.packing import Row
from llama_jax.data.rows.prefetching import Prefetcher
from llama_jax.data.rows.streams import Rows
from llama_jax.data.tokenizers import Tokenizer


class Prompt(NamedTuple):
    """What a model is asked."""

    text: str
    """What the user says."""
    ids: list[int]
    """The same in the template of the data, up to where the answer begins."""
    reference: str | None = None
    """The answer in the data."""


@dataclass(frozen=True)
class ExamplesPosition:
    """Where the examples stand between two batches. Checkpoints keep it as JSON, so the names must not change."""

    step: int = 0
    """Batches given."""
    row: int = 0
    """Rows of these batches, those of all processes."""
    tokens: int = 0
    """Places for tokens in these rows."""
    epoch: int = 0
    """Epoch that the last of these rows is of."""
    epoch_rows: int = 0
    """Rows of this epoch that were given."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ExamplesPosition":
        """The position that `to_json` gave."""
        return cls(**record)


class RowLoader:
    """Batches of rows of examples, prepared ahead by a thread.

    ```
    for rows, position in loader.start(position): ...
    ```

    No batch has examples of two epochs: the last of an epoch is filled up with rows of padding.

    Args:
        config: The data section.
        data: The examples, and what came of each source.
        planner: Says which examples each row of an epoch has.
        row: Of the examples for training or for validation, some by their numbers as one row of a length.
        facts: What decides the order of rows beside the examples and the config, as JSON values.
        batch_size_at: Rows of the global batch of each step, from 0.
        rows_of: Row numbers, within a global batch of the given size, that this process is to supply, in the order
            wanted. None: all rows.
    """

    fingerprint: str
    """SHA-256 in hexadecimal of all that decides the order of rows, but for batch sizes. Only a position that was
    recorded under the same fingerprint may be given to `start`."""

    def __init__(
        self,
        config: ExampleDataConfig,
        data: ExampleData[Any, Any],
        planner: Planner,
        row: Callable[[Any, Sequence[int], int], Row],
        facts: Mapping[str, Any],
        *,
        batch_size_at: Callable[[int], int],
        rows_of: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        self.layout, self.data = data.layout, data
        self._config, self._planner, self._row = config, planner, row
        self._batch_size_at = batch_size_at
        self._rows_of = range if rows_of is None else rows_of
        self._prefetcher: Prefetcher[tuple[Rows, ExamplesPosition]] | None = None
        self.fingerprint = _fingerprint(data, config, facts)

    def description(self) -> list[str]:
        """Lines that say what there is to learn, and what could not be used."""
        return self.data.description()

    def start(self, position: ExamplesPosition | None = None) -> Prefetcher[tuple[Rows, ExamplesPosition]]:
        """Begin after the batch that `position` was given with; at the first batch when it is None.

        Returns:
            An endless iterator of `(rows, position)`, until `close`: this process's rows, arrays [local rows, T],
            and the position after this batch, the same on all processes.
        """
        self.close()
        batches = self._batches(position or ExamplesPosition())
        self._prefetcher = Prefetcher(batches, self._config.prefetch_batches)
        return self._prefetcher

    def close(self) -> None:
        """Stop the thread. `start` may be called again."""
        if self._prefetcher is not None:
            self._prefetcher.stop()
            self._prefetcher.join()
        self._prefetcher = None

    def position_of(self, records: Sequence[Mapping[str, Any]]) -> ExamplesPosition:
        """The position that all processes of a run recorded after the same batch.

        Raises:
            ValueError: they are of different batches.
        """
        if any(record != records[0] for record in records):
            raise ValueError(f"positions after different batches cannot be merged: {list(records)}")
        return ExamplesPosition.from_json(records[0])

    def tokens_before(self, position: ExamplesPosition) -> int:
        """Tokens in the global batches before a position, those of padding among them."""
        return position.tokens

    def progress_record(self, position: ExamplesPosition) -> MetricsRecord:
        """Epochs of each source, and what was dropped or cut when the examples were read."""
        planner, sources = self._planner, self.data.training.sources
        given = planner.examples_before(position.epoch)
        if position.epoch_rows:
            plan = planner.plan(position.epoch)
            begun = plan.examples[: int(plan.starts[position.epoch_rows])]
            given = given + np.bincount(planner.source_of(begun), minlength=len(given))
        epochs = (given / np.diff(sources)).tolist()
        names = [counts.name for counts in self.data.counts]
        record: MetricsRecord = {"epochs": dict(zip(names, epochs, strict=False))}
        dropped = sum((counts.dropped for counts in self.data.counts), Counter())
        truncated = sum(counts.truncated for counts in self.data.counts)
        record |= {"dropped_records": dict(sorted(dropped.items()))} if dropped else {}
        return record | ({"truncated_examples": truncated} if truncated else {})

    def steps_of_epochs(self, epochs: int | float, batch_size: int) -> int:
        """Steps of batches of one size that passes over the examples take; a part of one is rounded up."""
        whole = math.floor(epochs)
        steps = sum(-(-len(self._planner.plan(epoch)) // batch_size) for epoch in range(whole))
        if epochs > whole:
            steps += math.ceil((epochs - whole) * -(-len(self._planner.plan(whole)) // batch_size))
        return max(1, steps)

    def validation_batches(self, batch_size: int) -> Iterator[Rows]:
        """All held-out examples once, in their order, one a row: whole global batches, arrays [batch_size, T]. Rows
        missing in the last batch are padding throughout (`segment_ids` and `loss_weights` 0)."""
        return self._in_order(self.data.validation, batch_size)

    def prompts(self, texts: Sequence[str], held_out: int) -> list[Prompt]:
        """What to ask a model, to read how it changes: these texts, each as a user's; where there are none, the prompts
        of so many held-out conversations."""
        if texts:
            return [Prompt(text, self.layout.prompt_ids([Turn("user", text)])) for text in texts]
        found = []
        for conversation, answer in self.data.prompts[:held_out]:
            asked = conversation[-1]
            text = f"{asked.content}\n{asked.input}" if asked.input else asked.content
            found.append(Prompt(text, self.layout.prompt_ids(conversation), answer))
        return found

    def _batches(self, position: ExamplesPosition) -> Iterator[tuple[Rows, ExamplesPosition]]:
        step, row, tokens, epoch, given = dataclasses.astuple(position)
        plan = self._planner.plan(epoch)
        while True:
            if given == len(plan):
                epoch, given = epoch + 1, 0
                plan = self._planner.plan(epoch)
            size = self._batch_size_at(step)
            rows = [plan[number] for number in range(given, min(given + size, len(plan)))]
            length = self._config.sequence_length
            if self._config.packing == "none":
                length = padded_length(self.data.training, rows, self._config)
            made = self._stacked(self.data.training, rows, self._rows_of(size), length)
            step, row, given, tokens = step + 1, row + size, given + len(rows), tokens + size * length
            yield made, ExamplesPosition(step, row, tokens, epoch, given)

    def _in_order(self, examples: Any, batch_size: int) -> Iterator[Rows]:
        for start in range(0, len(examples), batch_size):
            rows = [np.array([number]) for number in range(start, min(start + batch_size, len(examples)))]
            yield self._stacked(examples, rows, range(batch_size), padded_length(examples, rows, self._config))

    def _stacked(self, examples: Any, rows: Sequence[np.ndarray], places: Sequence[int], length: int) -> Rows:
        """The rows at some places of a batch; beyond those given there is padding."""
        made = [self._row(examples, rows[place].tolist() if place < len(rows) else [], length) for place in places]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}


class ExampleLoader(RowLoader):
    """Batches of instructions and answers, prepared ahead by a thread; see `RowLoader`.

    Args:
        config: The data section.
        tokenizer: Gives the ids, and the template where the config asks for the model's own.
        seed: Seed of the order of the examples.
        say: Told the first few records that are not used.
        kind: Reads the records.

    Raises:
        UserError: see `InstructionData` and `Layout`.
    """

    data: InstructionData

    def __init__(
        self,
        config: InstructionDataConfig,
        tokenizer: Tokenizer,
        seed: int,
        *,
        batch_size_at: Callable[[int], int],
        rows_of: Callable[[int], Sequence[int]] | None = None,
        say: Callable[[str], None] = lambda line: None,
        kind: type[InstructionData] = InstructionData,
    ) -> None:
        layout = Layout(config.template, tokenizer)
        data = kind(config, layout, say=say)
        planner = Planner(data.training, data.shares, config, seed, batch_size_at(0))
        facts = {"tokenizer": tokenizer.fingerprint, "seed": seed, "version": ROWS_VERSION}
        super().__init__(config, data, planner, row_of, facts, batch_size_at=batch_size_at, rows_of=rows_of)


def _fingerprint(data: ExampleData[Any, Any], config: ExampleDataConfig, more: Mapping[str, Any]) -> str:
    facts = {
        "examples": data.training.digest(),
        "shares": data.shares,
        "sequence_length": config.sequence_length,
        "packing": config.packing,
        "group_by_length": config.group_by_length,
        "pad_multiple": config.pad_multiple,
        **more,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
