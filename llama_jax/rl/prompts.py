"""Prompts of a run that learns from rewards: their token ids, and the fields of their records that rewards are told."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.data.instructions.records import Turn, listed_turns
from llama_jax.data.instructions.stages import OfStage
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.rows.inspection import PERCENTILES
from llama_jax.data.rows.packing import Row
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError, RecordSource, split_indices
from llama_jax.data.sources.opening import open_records
from llama_jax.data.sources.record_text import Record, good_text, kind_of
from llama_jax.rl.config import PromptDataConfig

ARGUMENTS = ("prompts", "completions", "completion_ids")
"""Names of what reward functions are called with, beside the fields of the records."""
_ASKED = ("prompt", "messages")
_OWN = (*_ASKED, "completion", *ARGUMENTS)
"""Fields that reward functions are not given as such: what is asked they get as `prompts`."""


class Prompt(NamedTuple):
    """What is asked."""

    ids: list[int]
    """In the template of the data, up to where the answer begins."""
    asked: Any
    """As the record has it: a text, or turns."""
    fields: Mapping[str, Any]
    """The other fields of its record."""

    def row(self) -> Row:
        """By itself, as rows are shown: no token bears loss. Of a prompt of one token, which predicts none, itself."""
        ids = np.array(self.ids, np.int32)
        tokens, targets = (ids[:-1], ids[1:]) if len(ids) > 1 else (ids, ids)
        shown = {"tokens": tokens, "targets": targets, "segment_ids": np.ones(len(tokens), np.int32)}
        return shown | {"loss_weights": np.zeros(len(tokens), np.float32), "ends": np.ones(1, np.int32)}


class PromptData:
    """All prompts of a run, encoded once at its start. Which are asked in which order follows from the seed alone.

    Args:
        say: Told the first few records that are not used.

    Raises:
        UserError: the source cannot be opened, has more bad records than the config allows, or too few prompts.
    """

    training: list[Prompt]
    held_out: list[Prompt]
    fields: list[str]
    """Names of what rewards are told of any of them."""
    fingerprint: str
    """SHA-256 in hexadecimal of all that decides what is asked, and when."""

    def __init__(self, config: PromptDataConfig, layout: Layout, seed: int, say: Callable[[str], None]) -> None:
        self.layout, self._seed, self._name = layout, seed, config.source
        self._order = functools.lru_cache(2)(self._shuffled)
        self.too_long = 0
        """Prompts that were left out."""
        records = _records(config, say)
        if config.validation_examples >= len(records):
            raise UserError(
                f"data.validation_examples: {config.validation_examples} of {len(records)} records leaves none to "
                "train on"
            )
        bad = BadRecords(config.source, config.bad_records, config.max_bad_fraction, say=say)
        self.training, self.held_out = (
            self._prompts(records, numbers.tolist(), bad, config.max_prompt_tokens)
            for numbers in split_indices(len(records), config.validation_examples)
        )
        bad.check(len(records), "records")
        if not self.training:
            raise UserError(
                f"data.source: none of the {len(records):,} records of {config.source} is left to train on; "
                f"{self.too_long:,} have prompts of more than data.max_prompt_tokens ({config.max_prompt_tokens})"
            )
        every = (*self.training, *self.held_out)
        self.fields = sorted({name for prompt in every for name in prompt.fields})
        facts = [seed, [tuple(prompt) for prompt in every], len(self.training)]
        told = json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        self.fingerprint = hashlib.sha256(told).hexdigest()
        self._bad = bad.total

    def description(self) -> str:
        """What came of the records."""
        parts = [f"{self._name}: {len(self.training):,} prompts to learn from", f"{len(self.held_out):,} held out"]
        parts += [f"{self.too_long:,} dropped (too long)"] * bool(self.too_long)
        parts += [f"{self._bad:,} dropped (bad records)"] * bool(self._bad)
        return ", ".join(parts)

    def report(self) -> dict[str, Any]:
        """The same as JSON, and how many tokens the prompts have."""
        lengths = [len(prompt.ids) for prompt in (*self.training, *self.held_out)]
        percentiles = np.percentile(lengths, PERCENTILES, method="nearest").astype(int).tolist()
        return {
            "template": self.layout.name,
            "prompts": len(self.training),
            "held_out": len(self.held_out),
            "too_long": self.too_long,
            "bad_records": self._bad,
            "length_percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.ids) for prompt in (*self.training, *self.held_out))

    def numbered(self, first: int, count: int) -> list[Prompt]:
        """The prompts of some numbers, counted over all of the run; each epoch has an order of its own."""
        size = len(self.training)
        return [self.training[self._order(number // size)[number % size]] for number in range(first, first + count)]

    def _shuffled(self, epoch: int) -> list[int]:
        return np.random.RandomState([self._seed % 2**32, epoch]).permutation(len(self.training)).tolist()

    def _prompts(
        self, records: RecordSource[Record], numbers: Sequence[int], bad: BadRecords, longest: int
    ) -> list[Prompt]:
        found = []
        for number in numbers:
            try:
                record = records[number]
                ids = self.layout.prompt_ids(turns := _turns(record))
                if not ids:
                    raise BadRecordError("empty", record.place, f"is no token in the template {self.layout.name}")
            except BadRecordError as error:
                bad.note(error)
                continue
            if len(ids) > longest:
                self.too_long += 1
                continue
            text = isinstance(record.values.get("prompt"), str)
            asked = turns[0].content if text else [{"role": turn.role, "content": turn.content} for turn in turns]
            found.append(Prompt(ids, asked, {k: v for k, v in record.values.items() if k not in _OWN}))
        return found


def _records(config: PromptDataConfig, say: Callable[[str], None]) -> RecordSource[Record]:
    """All of the source, or those of a stage."""
    records = open_records(config.source)
    if config.stage is None:
        return records
    staged = OfStage(records, config.split, config.stage, lambda record: tuple(_turns(record)))
    if not len(staged):
        raise UserError(
            f"data.stage: none of the {len(records):,} records of {config.source} falls to stage {config.stage}"
        )
    say(f"{config.source}: {len(staged):,} of {len(records):,} records are of stage {config.stage}")
    return staged


def arguments_of(
    prompts: Sequence[Prompt], texts: Sequence[str], ids: Sequence[Sequence[int]], fields: Sequence[str]
) -> dict[str, list[Any]]:
    """What reward functions are called with, as TRL calls them: completions of prompts that are turns are turns, too,
    and a field that a record lacks is None.

    Args:
        prompts: Of each completion.
        fields: Of all the data: a function is always called with the same, whichever records are asked.
    """
    said = [
        text if isinstance(prompt.asked, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return {
        "prompts": [prompt.asked for prompt in prompts],
        "completions": said,
        "completion_ids": [list(each) for each in ids],
        **{name: [prompt.fields.get(name) for prompt in prompts] for name in fields},
    }


def _turns(record: Record) -> list[Turn]:
    """What a record asks.

    Raises:
        BadRecordError: it asks nothing, or the last turn is not a user's.
    """
    field = next((name for name in _ASKED if name in record.values), None)
    if field is None:
        there = ", ".join(record.values) or "no field"
        raise BadRecordError("missing_field", record.place, f"has no field 'prompt' or 'messages'; it has {there}")
    if isinstance(record.values[field], str):
        return [Turn("user", good_text(record.values[field], field, record.place))]
    if field == "prompt" and not isinstance(record.values[field], list | dict):
        kind = kind_of(record.values[field])
        message = f"field 'prompt' is of type {kind}; it must be a text or a list of turns"
        raise BadRecordError("wrong_type", record.place, message)
    turns = listed_turns(record, field)
    if not turns or turns[-1].role != "user":
        raise BadRecordError("turns", record.place, f"field '{field}' does not end with a user's turn")
    return turns
