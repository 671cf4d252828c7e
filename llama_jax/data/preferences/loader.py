"""Batches of compared, judged or scored answers: what `reward`, `dpo` and `kto` learn from. Independent of devices."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llama_jax.core.batches import completion_batch
from llama_jax.core.errors import UserError
from llama_jax.data.config import PreferenceDataConfig
from llama_jax.data.instructions.loader import RowLoader
from llama_jax.data.instructions.rows import EpochPlan, Planner
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.preferences.examples import CompletionExamples, PreferenceData, mismatched, with_shared_prompts
from llama_jax.data.preferences.records import Kind
from llama_jax.data.preferences.rows import completion_row
from llama_jax.data.rows.streams import Rows
from llama_jax.data.tokenizers import Tokenizer

MEMBERS: dict[Kind, int] = {"pairs": 2, "labels": 2, "scores": 1}
"""Sequences of an example: the two answers of a pair, an answer that is judged and the one of another example, or a
scored one."""

_ROWS_VERSION = 1
"""Part of the pipeline's fingerprint: raise it when the same examples come to give other rows."""


class PreferenceLoader(RowLoader):
    """Batches of `completion_batch(config.pairs_per_row, MEMBERS[kind])`, prepared ahead by a thread.

    Judged answers come in the same order in every epoch, so that each meets the same other answer again, whose log p
    under the reference model is then known.

    Args:
        config: The data section.
        tokenizer: Gives the ids, and the template where the config asks for the model's own.
        kind: What is to be learned.
        seed: Seed of the order of the examples.
        batch_size_at: Rows of the global batch of each step, from 0.
        rows_of: See `RowLoader`.
        say: Told the first few records that are not used.
        share_prompts: Lay a prompt once for all sequences of an example.

    Raises:
        UserError: see `ExampleData` and `Layout`; or the config does not fit the kind.
    """

    data: PreferenceData

    def __init__(
        self,
        config: PreferenceDataConfig,
        tokenizer: Tokenizer,
        kind: Kind,
        seed: int,
        *,
        batch_size_at: Callable[[int], int],
        rows_of: Callable[[int], Sequence[int]] | None = None,
        say: Callable[[str], None] = lambda line: None,
        share_prompts: bool = False,
    ) -> None:
        members, size = MEMBERS[kind], batch_size_at(0)
        most = longest_sequence(config, kind)
        layout = Layout(config.template, tokenizer)
        data = PreferenceData(config, kind, layout, most, say=say)
        if share_prompts and kind == "pairs":
            data.training, data.validation = map(with_shared_prompts, (data.training, data.validation))
        planner = Planner(data.training, data.shares, config, seed, size, config.pairs_per_row)
        if kind == "labels":
            planner = _SameEveryEpoch(data.training, data.shares, config, seed, size)
            data.training = mismatched(data.training, _groups(planner.plan(0).examples, size), most)
            data.validation = mismatched(data.validation, _groups(np.arange(len(data.validation)), size), most)
            if share_prompts:
                data.training, data.validation = map(with_shared_prompts, (data.training, data.validation))
        batch = completion_batch(config.pairs_per_row, members, share_prompts)
        facts = {"tokenizer": tokenizer.fingerprint, "seed": seed, "kind": kind, "version": _ROWS_VERSION}

        def row(examples: CompletionExamples, numbers: Sequence[int], length: int) -> dict[str, np.ndarray]:
            return completion_row(batch, examples, numbers, length)

        super().__init__(config, data, planner, row, facts, batch_size_at=batch_size_at, rows_of=rows_of)

    @property
    def training(self) -> CompletionExamples:
        """The examples to learn from."""
        return self.data.training

    @property
    def validation(self) -> CompletionExamples:
        """Those that are held out."""
        return self.data.validation

    def batches_in_order(self, batch_size: int) -> Iterator[Rows]:
        """All examples to learn from once, as `validation_batches` gives those that are held out."""
        return self._in_order(self.training, batch_size)

    def set_reference(self, training: np.ndarray, validation: np.ndarray) -> None:
        """Tell what a reference model says: log p of each answer, in nats, [N, M]. Of rows that are made from then on,
        so before `start`."""
        for name, values in (("training", training), ("validation", validation)):
            examples: CompletionExamples = getattr(self.data, name)
            values = values.astype(np.float32).reshape(examples.reference.shape)
            setattr(self.data, name, dataclasses.replace(examples, reference=values))


class _SameEveryEpoch(Planner):
    """Every epoch has the order of the first."""

    def plan(self, epoch: int) -> EpochPlan:
        del epoch
        return super().plan(0)


def _groups(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def longest_sequence(config: PreferenceDataConfig, kind: Kind) -> int:
    """Tokens of a prompt with one answer, at the most.

    Raises:
        UserError: the config does not fit the kind.
    """
    share = config.sequence_length // MEMBERS[kind]
    if config.max_length is not None and config.max_length > share:
        raise UserError(
            f"data.max_length: {MEMBERS[kind]} sequences of {config.max_length} tokens do not fit into a row of "
            f"data.sequence_length {config.sequence_length}; use at most {share}, or longer rows"
        )
    if kind == "labels" and config.pairs_per_row > 1:
        raise UserError("data.pairs_per_row: judged answers stand one a row; use 1")
    if kind == "labels" and config.mixture:
        raise UserError("data.mixture: judged answers come from one data.source, which may be a directory")
    if kind == "labels" and config.group_by_length:
        raise UserError("data.group_by_length: judged answers come in an order of their own; use false")
    return config.max_length or share
