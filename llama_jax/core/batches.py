"""Batches: the joint between data and objectives. Whatever a loss needs beside the parameters is a field here."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from llama_jax.core.arrays import Array, Float, Int


class TokenBatch(struct.PyTreeNode):
    """Packed rows of tokens and what to predict at each position.

    Targets are a field, never `tokens[:, 1:]`: a shifted slice would break a sharded sequence axis, and packed
    documents need the end of one to predict nothing of the next. (Fields of trees are annotated, not checked: a tree of
    shapes or of shardings has the same class.)
    """

    tokens: Annotated[Any, Int[Array, "*M B T"]]
    """Input ids; 0 where `segment_ids` is 0."""
    targets: Annotated[Any, Int[Array, "*M B T"]]
    """The id to predict at each position."""
    loss_weights: Annotated[Any, Float[Array, "*M B T"]]
    """Weight of each position in the loss; 0 on padding and on positions that are only read."""
    segment_ids: Annotated[Any, Int[Array, "*M B T"]]
    """Document number within the row, from 1; 0 is padding. Attention never crosses segments."""
    positions: Annotated[Any, Int[Array, "*M B T"]]
    """Position within the document, from 0; drives the rotary embedding."""
    normalizer: Annotated[Any, Float[Array, "*M"]]
    """Sum of `loss_weights` over the whole batch of one update, counted before it is cut into microbatches and over
    all devices, so that losses and gradients of microbatches only need to be added."""


def microbatches(batch: TokenBatch, count: int) -> TokenBatch:
    """Cut the batch into `count` microbatches along a new leading axis, keeping the normaliser of the whole.

    Row r of the batch goes to microbatch r mod count: consecutive rows live on the same device, so a strided cut
    leaves every device with rows of each microbatch and moves no data.
    """

    def cut(leaf: Array) -> Array:
        if leaf.ndim == 0:
            return jnp.broadcast_to(leaf, (count,))
        return jnp.moveaxis(leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(cut, batch)
