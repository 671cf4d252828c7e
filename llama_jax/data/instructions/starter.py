"""The small set of instructions that comes with the package, so that fine-tuning needs no download."""

import json
from importlib import resources

from llama_jax.data.sources.record_text import Record

STARTER = "starter"
"""Its name as a source."""
_FILE = "starter_instructions.json"


class _StarterRecords:
    def __init__(self, content: bytes) -> None:
        self._records = json.loads(content)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return Record(f"{STARTER}[{index}]", self._records[index])

    def identity(self) -> str:
        return STARTER


def starter_records() -> _StarterRecords:
    """Instructions with and without input, and an answer to each, in Alpaca's format."""
    return _StarterRecords((resources.files("llama_jax.data.instructions") / _FILE).read_bytes())
