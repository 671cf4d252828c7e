"""Examples of several sequences to rows; their arrays are as in `core.batches.completion_batch`."""

from collections.abc import Sequence

import numpy as np

from llama_jax.core.batches import CompletionBatch
from llama_jax.data.preferences.examples import CompletionExamples
from llama_jax.data.preferences.records import shared_opening
from llama_jax.data.rows.packing import Row
from llama_jax.data.rows.streams import Rows


def completion_row(
    kind: type[CompletionBatch], examples: CompletionExamples, numbers: Sequence[int], row_length: int
) -> Row:
    """Whole examples, their sequences one after the other, and padding behind them.

    Args:
        kind: Class of the batches; has room for as many examples.
    """
    row = kind.empty_row(row_length)
    filled = segment = 0
    for slot, number in enumerate(numbers):
        sequences, shared = examples[number], int(examples.shared[number])
        places = slice(filled, filled + shared)
        row["tokens"][places] = sequences[0][0][:shared]
        row["segment_ids"][places] = row["starts"].size + slot + 1
        row["positions"][places] = np.arange(shared)
        filled += shared
        for member, (ids, of_answer) in enumerate((ids[shared:], of_answer[shared:]) for ids, of_answer in sequences):
            places, segment = slice(filled, filled + len(ids)), segment + 1
            row["tokens"][places] = ids
            row["targets"][places] = [*ids[1:], 0]
            row["loss_weights"][places] = [*of_answer[1:], False]
            row["segment_ids"][places] = segment
            row["positions"][places] = shared + np.arange(len(ids))
            row["starts"][slot, member], row["ends"][slot, member] = filled, filled + len(ids) - 1
            filled += len(ids)
        if len(sequences) > 1:
            row["divergence"][slot] = shared_opening(*(ids.tolist() for ids, _ in sequences))
        row["labels"][slot] = examples.labels[number]
        row["reference"][slot] = examples.reference[number]
        row["example_weights"][slot] = 1
    return row


def ending_before(rows: Rows, padding: int) -> Rows:
    """The same rows, in which each sequence ends with its last id that is not padding, as transformers has it; one that
    has no other keeps its first."""
    places = np.where(rows["tokens"] == padding, -1, np.arange(rows["tokens"].shape[1]))
    last = np.maximum.accumulate(places, axis=1)
    ends = np.take_along_axis(last, rows["ends"].reshape(len(last), -1), axis=1).reshape(rows["ends"].shape)
    return {**rows, "ends": np.maximum(ends, rows["starts"]).astype(np.int32)}
