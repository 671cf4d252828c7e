"""Records dealt to the stages of a pipeline by their prompts, so that no prompt is in two of them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from llama_jax.data.instructions.records import Conversation
from llama_jax.data.sources.documents import BadRecordError, RecordSource
from llama_jax.data.sources.record_text import Record

PromptOf: TypeAlias = Callable[[Record], Conversation | str]
"""What is asked in a record; raises BadRecordError where it cannot be told."""


def prompt_key(records: RecordSource[Record], number: int, prompt_of: PromptOf) -> bytes:
    """Tells records with the same prompt, in whatever format: 32 bytes. Of a record that is bad, its own."""
    try:
        prompt = prompt_of(records[number])
    except BadRecordError as error:
        prompt = str(error)  # names its place
    said = prompt if isinstance(prompt, str) else [[turn.role, turn.content.strip(), turn.input] for turn in prompt]
    return hashlib.sha256(json.dumps(said).encode()).digest()


class OfStage:
    """The records of a source whose prompts fall to one of the stages, by a hash: whichever sources hold a prompt, it
    is of the same stage in all of them.

    Args:
        split: Shares of the stages, which need not sum to 1.
        stage: Number of one, from 1.
    """

    def __init__(self, records: RecordSource[Record], split: Sequence[float], stage: int, prompt_of: PromptOf) -> None:
        self._records = records
        self._identity = f"{records.identity()} stage {stage} of {list(split)}"
        bounds = np.cumsum(split) / sum(split)
        keys = (prompt_key(records, number, prompt_of) for number in range(len(records)))
        places = [int.from_bytes(key[:8], "big") / 2**64 for key in keys]
        self._numbers = np.flatnonzero(
            np.minimum(np.searchsorted(bounds, places, side="right"), _last(split)) == stage - 1
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Record:
        return self._records[int(self._numbers[number])]

    def identity(self) -> str:
        """As that of the records, and what was taken of them."""
        return self._identity


def _last(split: Sequence[float]) -> int:
    """Place of the last share that is not 0, to which rounding must not deal past."""
    return max(number for number, share in enumerate(split) if share)
