"""Rows of text that a policy goes on predicting while it learns from rewards."""

import hashlib
from collections.abc import Mapping

import numpy as np

from llama_jax.core.batches import TokenBatch
from llama_jax.core.errors import UserError
from llama_jax.data.rows.packing import validation_rows
from llama_jax.data.sources.documents import SelectedDocuments
from llama_jax.data.sources.opening import errors_of, open_source
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.rl.ppo_config import TextConfig


class TextRows:
    """The documents of a source in packed rows, in memory. Which rows an update has follows from its number alone.

    Args:
        size: Rows of an update.

    Raises:
        UserError: the source cannot be opened, or holds no text.
    """

    def __init__(self, config: TextConfig, tokenizer: Tokenizer, row_length: int, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        with errors_of("text.source"):
            documents = open_source(str(config.source))
        some = SelectedDocuments(documents, np.arange(min(len(documents), config.max_documents)), "first")
        rows = list(validation_rows(some, tokenizer, row_length))
        if not rows:
            raise UserError(f"text.source: {config.source} holds no text")
        self._rows = {
            f"text_{name}": np.stack([row[name] for row in rows]) for name in TokenBatch.empty_row(row_length)
        }
        self.count = len(rows)
        self.fingerprint = hashlib.sha256(b"".join(field.tobytes() for field in self._rows.values())).hexdigest()

    def __call__(self, update: int) -> Mapping[str, np.ndarray]:
        """The fields of `PolicyTextBatch` that are of text, for an update of the run, counted from 0."""
        numbers = range(update * self._size, (update + 1) * self._size)
        chosen = [self._order(number // self.count)[number % self.count] for number in numbers]
        return {name: field[chosen] for name, field in self._rows.items()}

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.RandomState([self._seed % 2**32, epoch]).permutation(self.count)
