"""Documents to rows: ids between BOS and EOS, laid end to end and cut into rows of equal length.

Knows nothing of batches, steps or processes. A row is a dictionary of numpy arrays [T]: `tokens`, `targets`,
`segment_ids` and `positions` (int32) and `loss_weights` (float32), with the meaning of the fields of `TokenBatch`.
Positions start again from 0 in each row, also where it opens in the middle of a document.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import grain
import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.data.config import DataConfig
from llama_jax.data.sources import Documents
from llama_jax.data.tokenizers import Tokenizer

PACKING_VERSION = 1
"""Part of the pipeline's fingerprint: raise it when the same documents come to give other rows."""

_DRAWN_TOGETHER = (
    4096  # documents: epochs smaller than this are ordered several at once, to seed a generator less often
)

Row: TypeAlias = dict[str, np.ndarray]


def training_stream(
    documents: Documents, tokenizer: Tokenizer, config: DataConfig, seed: int, stream: int
) -> grain.IterDataset[Row]:
    """Endless rows of one of the `config.streams` logical streams.

    All streams share one order of the documents, another in each epoch, and are dealt from it in turn: every epoch has
    each document once, however few there are. Documents are read and encoded in the thread that asks for a row.

    Args:
        documents: The training documents.
        tokenizer: Gives the ids.
        config: `streams` and `sequence_length` are used.
        seed: Seed of the order of the documents.
        stream: Number of the stream, from 0.
    """
    epochs = grain.MapDataset.source(_Epochs(documents, seed))
    return _packed(epochs[stream :: config.streams], tokenizer, config.sequence_length)


def validation_rows(documents: Documents, tokenizer: Tokenizer, sequence_length: int) -> Iterator[Row]:
    """All documents once, in their order. The last row is padded."""
    yield from _packed(grain.MapDataset.source(documents), tokenizer, sequence_length)


def position_of(rows: grain.DatasetIterator[Row]) -> list[int]:
    """Where the iterator of a stream stands, as JSON: documents begun, the bounds of what is left of the last one (-1
    when nothing is), and rows given since."""
    state = rows.get_state()
    start, stop = state["remainder_slices"]["pairs"]
    return [state["parent_state"]["next_index"], start, stop, state["elements_from_buffer_after_checkpoint"]]


def restore_position(rows: grain.DatasetIterator[Row], position: Sequence[int]) -> None:
    """Put the iterator of a stream where it stood when `position_of` gave `position`. Documents of at most one row are
    encoded again."""
    documents, start, stop, given = position
    state = {
        "parent_state": {"next_index": documents},
        # A tuple: grain's own state, once it has been JSON, has a list here, which grain takes for a remainder even
        # where it says that there is none, and a document is lost without a word.
        "remainder_slices": {"pairs": (start, stop)},
        "elements_from_buffer_after_checkpoint": given,
    }
    rows.set_state(state)


class _Epochs:
    """The documents without end, each epoch in an order of its own.

    Instead of grain's `shuffle`, which takes 45 ms an epoch however few documents there are (it walks 65536 places): a
    batch from a file of five lines would take half a minute.
    """

    def __init__(self, documents: Documents, seed: int) -> None:
        self._documents = documents
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> str:
        count = len(self._documents)
        epochs = max(1, _DRAWN_TOGETHER // count)
        block, place = divmod(index, epochs * count)
        return self._documents[int(_order(count, epochs, self._seed, block)[place])]


@functools.lru_cache(maxsize=4)  # shared by all streams, of which some are an epoch ahead; 8 bytes a document each
def _order(count: int, epochs: int, seed: int, block: int) -> Int[np.ndarray, "places"]:
    # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
    generator = np.random.RandomState([seed % 2**32, block])
    return np.concatenate([generator.permutation(count) for _ in range(epochs)])


class _TokenPairs(grain.transforms.Map):
    """A text to its (token, target) pairs.

    A class, like `_Rows`: grain looks up the source code of a function whenever a stream is opened.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def map(self, element: str) -> Any:
        ids = np.array(self._tokenizer.encode(element, bos=True, eos=True), np.int32)
        return {"pairs": np.stack([ids[:-1], ids[1:]], axis=1)}


class _Rows(grain.transforms.Map):
    """What grain has packed to a row."""

    def map(self, element: Row) -> Any:
        tokens, targets = np.ascontiguousarray(element["pairs"].T)
        return {
            "tokens": tokens,
            "targets": targets,
            "loss_weights": (element["pairs_segment_ids"] > 0).astype(np.float32),
            "segment_ids": element["pairs_segment_ids"],
            "positions": element["pairs_positions"],
        }


def _packed(documents: grain.MapDataset[str], tokenizer: Tokenizer, sequence_length: int) -> grain.IterDataset[Row]:
    # 64 streams are open at once: threads of their own would cost memory and fight for the interpreter.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    pairs = documents.map(_TokenPairs(tokenizer)).to_iter_dataset(options)
    return grain.experimental.ConcatThenSplitIterDataset(pairs, length_struct={"pairs": sequence_length}).map(_Rows())
