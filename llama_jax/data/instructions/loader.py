"""Examples to batches: the rows of each step, this process's share of them, and the exact position.

Every process knows all rows, so any number of them reads the same batches, and a run may go on with another number.
Knows nothing of devices."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.data.config import InstructionDataConfig
from llama_jax.data.instructions.examples import Examples, InstructionData
from llama_jax.data.instructions.records import Turn
from llama_jax.data.instructions.rows import ROWS_VERSION, Planner, padded_length, row_of
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.rows.loader import State
from llama_jax.data.rows.prefetching import Ahead
from llama_jax.data.rows.streams import Batch
from llama_jax.data.tokenizers import Tokenizer


class Prompt(NamedTuple):
    """What a model is asked."""

    text: str
    """What the user says."""
    ids: list[int]
    """The same in the template of the data, up to where the answer begins."""
    reference: str | None = None
    """The answer in the data."""


class ExampleLoader:
    """Batches of instructions and answers, prepared ahead by a thread.

    ```
    for rows, state in loader.start(state): ...
    ```

    No batch has examples of two epochs: the last of an epoch is filled up with rows of padding.

    Args:
        config: The data section.
        tokenizer: Gives the ids, and the template where the config asks for the model's own.
        seed: Seed of the order of the examples.
        batch_size_at: Rows of the global batch of each step, from 0.
        rows_of: Row numbers, within a global batch of the given size, that this process is to supply, in the order
            wanted. None: all rows.
        say: Told the first few records that are not used.

    Raises:
        UserError: see `InstructionData` and `Layout`.
    """

    data: InstructionData
    """The examples, and what came of each source."""
    layout: Layout
    """The template."""
    fingerprint: str
    """SHA-256 in hexadecimal of all that decides the order of rows, but for batch sizes. Only a state that was recorded
    under the same fingerprint may be given to `start`."""

    def __init__(
        self,
        config: InstructionDataConfig,
        tokenizer: Tokenizer,
        seed: int,
        *,
        batch_size_at: Callable[[int], int],
        rows_of: Callable[[int], Sequence[int]] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.layout = Layout(config.template, tokenizer)
        self.data = InstructionData(config, self.layout, say=say)
        self._config = config
        self._batch_size_at = batch_size_at
        self._rows_of = range if rows_of is None else rows_of
        self._planner = Planner(self.data.training, self.data.shares, config, seed, batch_size_at(0))
        self._ahead: Ahead[tuple[Batch, State]] | None = None
        self.fingerprint = _fingerprint(self.data, config, tokenizer, seed)

    def description(self) -> list[str]:
        """Lines that say what there is to learn, and what could not be used."""
        return self.data.description()

    def start(self, state: State | None = None) -> "ExampleLoader":
        """Begin after the batch that `state` was given with; at the first batch when it is None.

        Returns:
            The loader itself, an endless iterator of `(rows, state)`: this process's rows, arrays [local rows, T], and
            the state after this batch, the same on all processes. A state is a snapshot that later batches do not
            change: `step`, batches given; `row` and `tokens`, rows of the global batches before and the places for
            tokens in them; `epoch`, and how many rows of it have been given.
        """
        self.close()
        self._ahead = Ahead(self._batches(state), self._config.prefetch_batches)
        return self

    def __iter__(self) -> Iterator[tuple[Batch, State]]:
        return self

    def __next__(self) -> tuple[Batch, State]:
        """The next batch."""
        if self._ahead is None:
            raise RuntimeError("the loader gives batches between start() and close()")
        return next(self._ahead)

    def close(self) -> None:
        """Stop the thread. `start` may be called again."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead.join()
        self._ahead = None

    def merged(self, states: Sequence[State]) -> State:
        """The state that all processes of a run recorded after the same batch.

        Raises:
            ValueError: they are of different batches.
        """
        if any(state != states[0] for state in states):
            raise ValueError(f"states of different batches cannot be merged: {list(states)}")
        return states[0]

    def progress_record(self, state: State) -> dict[str, Any]:
        """Epochs of each source, and what was dropped or cut when the examples were read."""
        planner, sources = self._planner, self.data.training.sources
        given = planner.examples_before(state["epoch"])
        if state["epoch_rows"]:
            plan = planner.plan(state["epoch"])
            begun = plan.examples[: int(plan.starts[state["epoch_rows"]])]
            given = given + np.bincount(planner.source_of(begun), minlength=len(given))
        epochs = (given / np.diff(sources)).tolist()
        names = [counts.name for counts in self.data.counts]
        record: dict[str, Any] = {"epochs": dict(zip(names, epochs, strict=False))}
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

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """All held-out examples once, in their order, one a row: whole global batches, arrays [batch_size, T]. Rows
        missing in the last batch are padding throughout (`segment_ids` and `loss_weights` 0)."""
        config, examples = self._config, self.data.validation
        for start in range(0, len(examples), batch_size):
            rows = [np.array([number]) for number in range(start, min(start + batch_size, len(examples)))]
            length = padded_length(examples, rows, config)
            yield _stacked(
                examples, [rows[place] if place < len(rows) else None for place in range(batch_size)], length
            )

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

    def _batches(self, state: State | None) -> Iterator[tuple[Batch, State]]:
        state = state or {"step": 0, "row": 0, "tokens": 0, "epoch": 0, "epoch_rows": 0}
        step, row, tokens, epoch, given = (state[name] for name in ("step", "row", "tokens", "epoch", "epoch_rows"))
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
            wanted = [rows[place] if place < len(rows) else None for place in self._rows_of(size)]
            step, row, given, tokens = step + 1, row + size, given + len(rows), tokens + size * length
            after = {"step": step, "row": row, "tokens": tokens, "epoch": epoch, "epoch_rows": given}
            yield _stacked(self.data.training, wanted, length), after


def _stacked(examples: Examples, rows: Sequence[np.ndarray | None], length: int) -> Batch:
    """Rows of a batch; None is one of padding."""
    made = [row_of(examples, [] if row is None else row.tolist(), length) for row in rows]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def _fingerprint(data: InstructionData, config: InstructionDataConfig, tokenizer: Tokenizer, seed: int) -> str:
    facts = {
        "examples": data.training.digest(),
        "shares": data.shares,
        "tokenizer": tokenizer.fingerprint,
        "sequence_length": config.sequence_length,
        "packing": config.packing,
        "group_by_length": config.group_by_length,
        "pad_multiple": config.pad_multiple,
        "seed": seed,
        "version": ROWS_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
