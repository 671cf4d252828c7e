"""How well a model predicts text: nats per token, and bits per byte, which compares models of different tokenizers."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.sharding import local_rows, place_batch
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.next_token import next_token


@functools.partial(jax.jit, static_argnums=0)
def summed_loss(model: LanguageModel, params: PyTree, batch: TokenBatch) -> Float[Array, ""]:
    """Sum of -log p(target) over the weighted targets of a batch, in nats."""
    sums = batch.replace(normalizer=jnp.ones_like(batch.normalizer))
    return next_token(model)(params, {}, sums, jax.random.key(0))[1]["loss"]


def perplexity(
    model: LanguageModel, params: PyTree, batches: Iterable[Mapping[str, np.ndarray]], text_bytes: int
) -> dict[str, Any]:
    """Score every target of the batches once.

    Args:
        params: scanned layout, on the mesh in use.
        batches: rows of each global batch, whole on every process, all of one size.
        text_bytes: UTF-8 bytes of the text that the targets cover.

    Returns:
        `loss` (nats per token, the ends of documents included), `perplexity`, `bits_per_byte`, `tokens`, `bytes`.
    """
    mesh = jax.sharding.get_mesh()
    nats, tokens = 0.0, 0
    for rows in batches:
        size = len(rows["tokens"])
        mine = local_rows(mesh, size)
        batch = place_batch(mesh, {name: array[mine] for name, array in rows.items()}, size)
        nats += float(summed_loss(model, params, batch))
        tokens += int(rows["loss_weights"].sum())
    return {
        "loss": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
        "bytes": text_bytes,
    }
