"""Completions of a rollout, `[N, C]`, laid with their prompts into packed rows, `[R, T]`, and what a model says of each
position brought back. Knows no loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_jax.core.arrays import Bool, Float, Int
from llama_jax.core.batches import TokenBatch
from llama_jax.core.errors import UserError
from llama_jax.data.instructions.rows import packed
from llama_jax.data.rows.packing import Row


@dataclass(frozen=True)
class Rows:
    """Packed rows, and where in them each completion lies."""

    fields: Row
    """Those of `TokenBatch`, without a normaliser; `loss_weights` are 1 where the target was sampled."""
    _row: Int[np.ndarray, "N 1"]
    _place: Int[np.ndarray, "N C"]
    """In the row, of the position that predicts each token."""
    _there: Bool[np.ndarray, "N C"]
    """Whether there is such a position."""

    def __len__(self) -> int:
        return len(self.fields["tokens"])

    def laid(self, values: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "R T"]:
        """Values of the sampled tokens where they are predicted, 0 elsewhere."""
        rows = np.zeros(self.fields["tokens"].shape, np.float32)
        rows[np.broadcast_to(self._row, self._there.shape)[self._there], self._place[self._there]] = values[self._there]
        return rows

    def gathered(self, rows: Float[np.ndarray, "R T"]) -> Float[np.ndarray, "N C"]:
        """The inverse of `laid`: what stands where each sampled token is predicted, 0 behind the ends."""
        return np.where(self._there, rows[self._row, self._place], np.float32(0))


def laid_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    longest: int,
    row_length: int,
    *,
    multiple: int = 1,
    reads_end: Bool[np.ndarray, "N"] | None = None,
) -> Rows:
    """Each prompt and its completion as a segment of its own, whole, in as few rows as best-fit makes.

    Args:
        longest: C, tokens that a completion may have.
        row_length: T.
        multiple: The number of rows is a multiple of this; rows of padding make it up.
        reads_end: Completions whose last token is read too, so that there is a value behind it, at the place after
            it in `[N, C]`; None: none.

    Raises:
        UserError: a prompt with its completion does not fit into a row.
    """
    behind = np.zeros(len(prompts), np.int64) if reads_end is None else reads_end.astype(np.int64)
    lengths = np.array([len(p) + len(c) - 1 for p, c in zip(prompts, completions, strict=True)], np.int64) + behind
    if len(lengths) and (widest := int(lengths.max())) > row_length:
        raise UserError(f"row_length: {row_length} is less than the {widest} tokens of a prompt with its completion")
    plan = packed(np.arange(len(prompts)), lengths, row_length, most=len(prompts))
    count = -(-max(len(plan), 1) // multiple) * multiple
    row = TokenBatch.empty_row(row_length)
    fields = {name: np.zeros((count, *each.shape), each.dtype) for name, each in row.items()}
    row_of, first = np.zeros((2, len(prompts)), np.int64)
    for number in range(len(plan)):
        filled = 0
        for segment, sample in enumerate(plan[number].tolist(), 1):
            ids = np.array([*prompts[sample], *completions[sample]], np.int32)
            end = filled + int(lengths[sample])
            fields["tokens"][number, filled:end] = ids[: end - filled]
            fields["targets"][number, filled : filled + len(ids) - 1] = ids[1:]
            fields["segment_ids"][number, filled:end] = segment
            fields["positions"][number, filled:end] = np.arange(end - filled)
            row_of[sample], first[sample] = number, filled + len(prompts[sample]) - 1
            fields["loss_weights"][number, first[sample] : filled + len(ids) - 1] = 1
            filled = end
    sampled = np.array([len(each) for each in completions], np.int64) + behind
    places = first[:, None] + np.arange(longest)[None]
    there = np.arange(longest)[None] < sampled[:, None]
    return Rows(fields, row_of[:, None], np.where(there, places, 0), there)
