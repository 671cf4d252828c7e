"""Batches: the joint between data and objectives. Whatever a loss needs beside the parameters is a field here.

A batch class declares its fields, and all else follows from the declarations: how it is placed on a mesh, cut into
microbatches, compiled for and counted. Independent of JAX until a batch is made, so that processes that only lay rows
do without it."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import numpy as np


@dataclass(frozen=True)
class ArrayField:
    """What an array of a batch is."""

    dtype: np.dtype
    axes: tuple[str | int, ...]
    """Logical axes (`core.sharding.TABLE`): `batch`, if any, is the first; `length` is that of a row. A number is the
    size of an axis that is never split."""
    is_read: bool = False
    """Its elements are the tokens that the model reads: they are counted, and hashed to tell batches apart."""
    total_of: str | None = None
    """The field whose sum this is, over the whole batch of one update."""

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Of a batch of so many rows of so many tokens."""
        return tuple({"batch": rows, "length": length}[axis] if isinstance(axis, str) else axis for axis in self.axes)


def array(dtype: Any, *axes: str | int, is_read: bool = False) -> Any:
    """Declare a field; see `ArrayField`. `array(np.int32, "batch", 2, "length")` is a pair of rows in each row."""
    return dataclasses.field(metadata={"array": ArrayField(np.dtype(dtype), axes, is_read)})


def per_token(dtype: Any, *, is_read: bool = False) -> Any:
    """Declare a field `[B, T]`."""
    return array(dtype, "batch", "length", is_read=is_read)


def total(of: str) -> Any:
    """Declare a normaliser: the sum of another field over the whole batch of one update, counted before it is cut into
    microbatches and over all devices, so that losses and gradients of microbatches only need to be added. At least 1,
    so that a batch of nothing but padding has loss 0 instead of 0/0."""
    return dataclasses.field(metadata={"array": ArrayField(np.dtype(np.float32), (), total_of=of)})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(array, per_token, total))
class Batch:
    """Base of the batch classes, which become frozen dataclasses and pytrees. Their fields hold arrays, or what stands
    for them: shapes, shardings; microbatches have an axis before all others."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclass(frozen=True, eq=False)(cls)

    def __post_init__(self) -> None:
        _register(type(self))

    @classmethod
    def arrays(cls) -> dict[str, ArrayField]:
        """The declarations by name, in their order."""
        return {field.name: field.metadata["array"] for field in dataclasses.fields(cls)}  # pyright: ignore

    @classmethod
    def read_fields(cls) -> list[str]:
        """Names of the fields that hold the tokens that the model reads."""
        return [name for name, field in cls.arrays().items() if field.is_read]

    @classmethod
    def empty_row(cls, length: int) -> dict[str, np.ndarray]:
        """One row of nothing but padding, as data lays it: zeros, without the axis of the batch."""
        by_row = {name: field for name, field in cls.arrays().items() if "batch" in field.axes}
        return {name: np.zeros(field.shape(1, length)[1:], field.dtype) for name, field in by_row.items()}

    @classmethod
    def tokens_per_row(cls, length: int) -> int:
        """How many tokens the model reads of a row."""
        return sum(int(np.prod(cls.arrays()[name].shape(1, length))) for name in cls.read_fields())

    @classmethod
    def longest_sequence(cls, length: int) -> int:
        """How many tokens of a row the model reads as one text, at the most."""
        return length

    @classmethod
    def row_bytes(cls, length: int) -> int:
        """Bytes of a row, all its fields together."""
        return sum(row.nbytes for row in cls.empty_row(length).values())

    @property
    def token_count(self) -> int:
        """How many tokens the model reads of this batch."""
        return sum(getattr(self, name).size for name in self.read_fields())

    def replace(self, **fields: Any) -> Any:
        """The batch with other arrays in some fields."""
        return dataclasses.replace(self, **fields)  # pyright: ignore[reportArgumentType]


@functools.cache
def _register(kind: type[Batch]) -> None:
    import jax

    jax.tree_util.register_dataclass(kind, data_fields=list(kind.arrays()), meta_fields=[])


class TokenBatch(Batch):
    """Packed rows of tokens and what to predict at each position.

    Targets are a field, never `tokens[:, 1:]`: a shifted slice would break a sharded sequence axis, and packed
    documents need the end of one to predict nothing of the next.
    """

    tokens: Any = per_token(np.int32, is_read=True)
    """Input ids; 0 where `segment_ids` is 0."""
    targets: Any = per_token(np.int32)
    """The id to predict at each position."""
    loss_weights: Any = per_token(np.float32)
    """Weight of each position in the loss; 0 on padding and on positions that are only read."""
    segment_ids: Any = per_token(np.int32)
    """Document number within the row, from 1; 0 is padding. Attention never crosses segments."""
    positions: Any = per_token(np.int32)
    """Position within the document, from 0; drives the rotary embedding."""
    normalizer: Any = total("loss_weights")
    """Sum of `loss_weights`."""


class CompletionBatch(Batch):
    """Packed rows of prompts with their completions, in examples of several that lie in the same row, one after the
    other: the two answers of a pair, or a scored one alone. Made by `completion_batch`, which gives `K` examples a row
    and `M` completions an example as numbers of its axes.

    Every sequence is a segment of its own, its prompt repeated; number m of example k is segment M k + m + 1. All its
    ids are read, the last one too: a reward model is read there.

    Where prompts are shared, what the sequences of example k have in common is read once, before them, as segment
    K M + k + 1, and each of them begins with the last id of the prompt.
    """

    shares_prompts: ClassVar[bool] = False

    tokens: Any = per_token(np.int32, is_read=True)
    """Input ids; 0 where `segment_ids` is 0."""
    targets: Any = per_token(np.int32)
    """The id to predict at each position; 0 at the last one of a sequence."""
    loss_weights: Any = per_token(np.float32)
    """1 where the target is of the completion, the id that ends it included."""
    segment_ids: Any = per_token(np.int32)
    """Number of the sequence within the row, from 1; 0 is padding. Attention never crosses segments."""
    positions: Any = per_token(np.int32)
    """Position within the sequence, from 0; drives the rotary embedding."""
    if TYPE_CHECKING:
        starts: Any
        ends: Any
        divergence: Any
        labels: Any
        reference: Any
        example_weights: Any
        normalizer: Any

    @property
    def prefix_ids(self) -> Any:
        """The segment that each token sees beside its own, which is that itself where there is none; None where no
        prompts are shared. Of NumPy or of JAX, as the batch is."""
        if not self.shares_prompts:
            return None
        examples, members = self.starts.shape[-2:]
        own, sequences = self.segment_ids, examples * members
        is_sequence = (own > 0) & (own <= sequences)
        return own + is_sequence * (sequences + 1 + (own - 1) // members - own)


@functools.cache
def completion_batch(
    examples: int, members: int, shares_prompts: bool = False, longest: int | None = None
) -> type[CompletionBatch]:
    """The class of batches with so many examples a row, of so many completions each.

    Args:
        longest: tokens of a prompt with one completion, at the most; None: as many as a row has.
    """
    shared = shares_prompts

    class Completions(CompletionBatch):
        shares_prompts: ClassVar[bool] = shared

        starts: Any = array(np.int32, "batch", examples, members)
        """Place in the row of the first id of each sequence; 0 of those that are not there."""
        ends: Any = array(np.int32, "batch", examples, members)
        """Place of the last."""
        divergence: Any = array(np.int32, "batch", examples)
        """How many ids the sequences of an example have in common at their beginning, where there are two."""
        labels: Any = array(np.float32, "batch", examples)
        """Margin of a pair, 0 where there is none; score of a completion; 1 or 0 for a good or a bad one."""
        reference: Any = array(np.float32, "batch", examples, members)
        """Summed log p of each completion under the reference model, in nats; 0 until known."""
        example_weights: Any = array(np.float32, "batch", examples)
        """1, or 0 where there is no example."""
        normalizer: Any = total("example_weights")
        """How many examples there are."""

        @classmethod
        def longest_sequence(cls, length: int) -> int:
            return length if longest is None else longest

    return Completions


class PolicyBatch(TokenBatch):
    """Packed rows of prompts with the completions that were sampled after them, for losses that make a completion
    likelier the larger its advantage. `loss_weights` are 1 where the target was sampled and is to be learned from."""

    shares: Any = per_token(np.float32)
    """What each token counts in the loss: 1, or 1 / the tokens of its completion."""
    share_normalizer: Any = array(np.float32)
    """What the sum over the batch of one update is divided by: tokens or completions, see `rl.aggregation`."""
    old_logprobs: Any = per_token(np.float32)
    """log p(target) in nats when it was sampled, by the forward pass of training."""
    reference_logprobs: Any = per_token(np.float32)
    """The same under the reference model; read only by losses with a divergence."""
    importance_weights: Any = per_token(np.float32)
    """Corrects for what the sampler's distribution differs from that of training; 1 where nothing is corrected."""
    advantages: Any = per_token(np.float32)
    """How much better than expected it was to choose this token."""


class PolicyTextBatch(PolicyBatch):
    """The same, and as many rows of text to go on predicting (PTX)."""

    text_tokens: Any = per_token(np.int32, is_read=True)
    text_targets: Any = per_token(np.int32)
    text_loss_weights: Any = per_token(np.float32)
    text_segment_ids: Any = per_token(np.int32)
    text_positions: Any = per_token(np.int32)
    text_normalizer: Any = total("text_loss_weights")


class ValueBatch(TokenBatch):
    """Packed rows of prompts with sampled completions, for a critic, which says at each position what will come.
    `loss_weights` are 1 where its value counts: where the target was sampled."""

    old_values: Any = per_token(np.float32)
    """What the critic said when the completion was sampled."""
    returns: Any = per_token(np.float32)
    """What came."""
