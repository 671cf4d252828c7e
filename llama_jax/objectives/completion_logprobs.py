"""log p(target) at some positions of each row, such as those of completions: the others cost no product with the output
matrix, which is a fifth of a small model."""

from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.core.sharding import over_parts
from llama_jax.objectives.completions import sequence_sums
from llama_jax.objectives.cross_entropy import CHUNK_BYTES, Unembed, logprobs_of, sums_and_gradients
from llama_jax.objectives.objective import Model

_TOKENS = ("batch", "length")
_FEWEST_CHUNKS = 8
"""The part of the last chunk that nobody wants is computed too: an eighth of all positions at the most."""


def sequence_logprobs(
    model: Model, params: PyTree, batch: CompletionBatch, rng: PRNGKeyArray | None = None
) -> Float[Array, "B K M"]:
    """log p of each completion after its prompt, in nats, the id that ends it included; 0 for those that are not
    there."""
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids, rng, prefix_ids=batch.prefix_ids)
    wanted = batch.loss_weights > 0
    logprobs = completion_logprobs(model.unembed, model.head(params), hidden, batch.targets, wanted)
    return sequence_sums(batch.loss_weights * logprobs, batch)


@jax.named_scope("completion_logprobs")
def completion_logprobs(
    unembed: Unembed,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    wanted: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """log p(target) in nats, float32, where `wanted`, and 0 elsewhere; differentiable in `head` and `hidden`.

    With a frozen head the gradient in the hidden states is found during the forward pass, up to the factor of each
    position, so that no logits are made twice.
    """

    def values(head: Any, hidden: Any) -> Array:
        return _by_chunks(unembed, head, hidden, targets, wanted, differentiated=False)[0]

    def forward(head: Any, hidden: Any) -> tuple[Array, tuple[Any, ...]]:
        if head.perturbed:
            return values(head.value, hidden.value), (head.value, hidden.value)
        logprobs, gradient = _by_chunks(unembed, head.value, hidden.value, targets, wanted, differentiated=True)
        return logprobs, (gradient,)

    def backward(kept: tuple[Any, ...], cotangent: Array) -> tuple[Array | None, Array]:
        if len(kept) == 1:
            (gradient,) = kept
            return None, (cotangent[..., None] * gradient).astype(gradient.dtype)
        # The gradient of the sum of cotangent * log p, which is that of -cotangent * -log p.
        head, hidden = kept
        weights = jnp.where(wanted, -cotangent, 0.0)
        return sums_and_gradients(unembed, 0.0, head, hidden, targets, weights, of_head=True)[1]

    logprobs = jax.custom_vjp(values)
    logprobs.defvjp(forward, backward, symbolic_zeros=True)
    return logprobs(head, hidden)


def _by_chunks(
    unembed: Unembed,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    wanted: Bool[Array, "B T"],
    *,
    differentiated: bool,
) -> tuple[Array, ...]:
    """log p(target) and, if `differentiated`, its gradient in the hidden state of each position."""

    def on_rows(head: Array, hidden: Array, targets: Array, wanted: Array) -> tuple[Array, ...]:
        shape, count = targets.shape, targets.size
        chunks = max(_FEWEST_CHUNKS, -(-count * head.shape[-1] * 4 // CHUNK_BYTES))
        size = -(-count // chunks)
        order = jnp.argsort(~wanted.reshape(-1), stable=True)  # what is wanted comes first
        places = jnp.pad(order, (0, chunks * size - count)).reshape(chunks, size)
        hidden, targets = hidden.reshape(count, -1), targets.reshape(-1)

        def found(place: Int[Array, "C"]) -> tuple[Array, ...]:
            logits, of_hidden = jax.vjp(lambda hidden: unembed(head, hidden), hidden[place])
            logprobs, of_logits = jax.vjp(lambda logits: logprobs_of(logits, targets[place])[0], logits)
            return (logprobs, *of_hidden(*of_logits(jnp.ones_like(logprobs)))) if differentiated else (logprobs,)

        def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, ...]:
            first, place = chunk
            kinds = jax.eval_shape(found, place)
            nothing = tuple(jnp.zeros(kind.shape, kind.dtype) for kind in kinds)
            return jax.lax.cond(first < wanted.sum(), found, lambda place: nothing, place)

        results = jax.lax.map(of_chunk, (jnp.arange(chunks) * size, places))
        back = jnp.argsort(order)
        laid = [x.reshape(chunks * size, *x.shape[2:])[back].reshape(*shape, *x.shape[2:]) for x in results]
        return tuple(jnp.where(wanted.reshape(*shape, *[1] * (x.ndim - 2)), x, 0) for x in laid)

    outputs = (_TOKENS,) * (1 + differentiated)
    return over_parts(on_rows, (None, _TOKENS, _TOKENS, _TOKENS), outputs)(head, hidden, targets, wanted)
