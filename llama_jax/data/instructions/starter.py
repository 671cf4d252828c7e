"""The small set of instructions that comes with the package, so that fine-tuning needs no download."""

import json
from importlib import resources

from llama_jax.data.sources.record_text import Record

STARTER = "starter"
"""Its name as a source."""
_FILE = "starter_instructions.json"


class _StarterRecords(list[Record]):
    def identity(self) -> str:
        return STARTER


def starter_records() -> _StarterRecords:
    """Instructions with and without input, and an answer to each, in Alpaca's format."""
    values = json.loads((resources.files("llama_jax.data.instructions") / _FILE).read_bytes())
    return _StarterRecords(Record(f"{STARTER}[{index}]", each) for index, each in enumerate(values))
