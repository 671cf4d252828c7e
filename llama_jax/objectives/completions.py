"""Numbers of whole sequences from numbers of positions, in rows that hold several of them (`core.batches`)."""

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Float
from llama_jax.core.batches import CompletionBatch


def sequence_sums(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K M"]:
    """The sum of the values over the positions of each sequence; 0 for those that are not there."""
    B, K, M = batch.starts.shape
    numbers = jax.lax.broadcasted_iota(jnp.int32, (1, 1, K * M), 2) + 1
    # Chosen, not multiplied: what stands in padding or in another sequence may be anything.
    of_sequence = jnp.where(batch.segment_ids[..., None] == numbers, values[..., None], 0.0)
    return of_sequence.sum(axis=1).reshape(B, K, M)


def at_ends(values: Float[Array, "B T"], batch: CompletionBatch) -> Float[Array, "B K M"]:
    """The value at the last position of each sequence; of those that are not there, the first of the row."""
    # A sum of one number and zeros is that number, and needs no lookup across the parts of a row.
    places = jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, values.shape[1]), 3)
    return jnp.where(places == batch.ends[..., None], values[:, None, None, :], 0.0).sum(axis=-1)
