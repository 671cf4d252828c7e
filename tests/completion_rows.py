"""Rows of completions, written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.batches import completion_batch


def row_of(examples, labels, members, K, length=32):
    """A row of examples, each a list of sequences of ids, up to K of them, with nothing but padding behind."""
    row = completion_batch(K, members).empty_row(length)
    place = 0
    for k, sequences in enumerate(examples):
        for m, ids in enumerate(sequences):
            here = slice(place, place + len(ids))
            row["tokens"][here], row["positions"][here] = ids, range(len(ids))
            row["segment_ids"][here] = k * members + m + 1
            row["starts"][k, m], row["ends"][k, m] = place, place + len(ids) - 1
            place += len(ids)
        if members == 2:
            same = [first == second for first, second in zip(*sequences, strict=False)]
            row["divergence"][k] = [*same, False].index(False)
        row["labels"][k], row["example_weights"][k] = labels[k], 1
    return row


def batch_of(rows, members, K):
    """The batch of some rows."""
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    normalizer = max(1, stacked["example_weights"].sum())
    kind = completion_batch(K, members)
    return kind(**jax.tree.map(jnp.asarray, stacked), normalizer=jnp.float32(normalizer))
