"""log p of every completion of a data set, example by example: what a reference model says once, and what evaluations
ask again and again."""

import functools
from collections.abc import Iterable

import jax
import numpy as np

from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.core.placing import place_whole_batch
from llama_jax.core.sharding import replicated
from llama_jax.data.rows.streams import Rows
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.completion_logprobs import sequence_logprobs


def completion_sums(
    model: LanguageModel, kind: type[CompletionBatch], params: PyTree, batches: Iterable[Rows]
) -> np.ndarray:
    """log p of each completion after its prompt, in nats, float32 [N, M].

    Args:
        kind: class of the batches.
        params: scanned layout, on the mesh in use.
        batches: rows of each global batch, whole on every process, with the examples in their order.
    """
    mesh = jax.sharding.get_mesh()
    found = []
    for rows in batches:
        batch = place_whole_batch(mesh, kind, rows, len(rows["tokens"]))
        sums = np.asarray(jax.device_put(_sums(model, params, batch), replicated(mesh)))
        found.append(sums[rows["example_weights"] > 0])
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: LanguageModel, params: PyTree, batch: CompletionBatch) -> Float[Array, "B K M"]:
    return sequence_logprobs(model, params, batch)
