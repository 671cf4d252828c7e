"""log p(target) at some positions of each row, such as those of completions: the others cost no product with the output
matrix, which is a fifth of a small model."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.core.sharding import over_parts
from llama_jax.objectives.completions import sequence_sums
from llama_jax.objectives.cross_entropy import Unembed, chunk_bytes, logprobs_of, sums_and_gradients
from llama_jax.objectives.objective import Model
from llama_jax.objectives.token_logprobs import by_chunks

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

    return _of_completions(logprobs_of, unembed, head, hidden, targets, wanted)[0]


@jax.named_scope("completion_logprobs")
def completion_logprobs_and_entropies(
    unembed: Unembed,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    wanted: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The same, and the entropy of the distribution at each of these positions, in nats, from the same logits. No
    gradient comes of the entropies; see `entropies` for those that have one."""
    return _of_completions(_logprobs_and_entropies, unembed, head, hidden, targets, wanted)


def entropies(unembed: Unembed, head: Float[Array, "D V"], hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """Entropy of the distribution at each position, in nats, float32; differentiable. Its logits are its own, chunk by
    chunk, made once more in the backward pass."""
    targets = jnp.zeros(hidden.shape[:2], jnp.int32)
    return by_chunks(jax.checkpoint(_logprobs_and_entropies), unembed, head, hidden, targets)[1]


_OfLogits: TypeAlias = Callable[[Float[Array, "*B V"], Int[Array, "*B"]], tuple[Float[Array, "*B"], Float[Array, "*B"]]]


def _logprobs_and_entropies(logits: Array, targets: Array) -> tuple[Array, Array]:
    logprobs, log_z = logprobs_of(logits, targets)
    return logprobs, log_z - jnp.sum(jnp.exp(logits - log_z[..., None]) * logits, axis=-1)


def _of_completions(
    of_logits: _OfLogits, unembed: Unembed, head: Array, hidden: Array, targets: Array, wanted: Array
) -> tuple[Array, Array]:
    """Two results of a function of logits and targets, of which the first, log p(target), is differentiable."""

    def values(head: Any, hidden: Any) -> tuple[Array, Array]:
        first, second = _by_chunks(of_logits, unembed, head, hidden, targets, wanted, differentiated=False)
        return first, second

    def forward(head: Any, hidden: Any) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
        if head.perturbed:
            return values(head.value, hidden.value), (head.value, hidden.value)
        *found, gradient = _by_chunks(
            of_logits, unembed, head.value, hidden.value, targets, wanted, differentiated=True
        )
        return (found[0], found[1]), (gradient,)

    def backward(kept: tuple[Any, ...], cotangents: tuple[Array, Any]) -> tuple[Array | None, Array]:
        cotangent = cotangents[0]
        if len(kept) == 1:
            (gradient,) = kept
            return None, (cotangent[..., None] * gradient).astype(gradient.dtype)
        # The gradient of the sum of cotangent * log p, which is that of -cotangent * -log p.
        (head, hidden), weights = kept, jnp.where(wanted, -cotangent, 0.0)
        return sums_and_gradients(unembed, 0.0, head, hidden, targets, weights, of_head=True)[1]

    found = jax.custom_vjp(values)
    found.defvjp(forward, backward, symbolic_zeros=True)
    first, second = found(head, hidden)
    return first, jax.lax.stop_gradient(second)


def _by_chunks(
    of_logits: _OfLogits,
    unembed: Unembed,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    wanted: Bool[Array, "B T"],
    *,
    differentiated: bool,
) -> tuple[Array, ...]:
    """The results of the function and, if `differentiated`, the gradient of the first in the hidden state of each
    position."""

    def on_rows(head: Array, hidden: Array, targets: Array, wanted: Array) -> tuple[Array, ...]:
        shape, count = targets.shape, targets.size
        chunks = max(_FEWEST_CHUNKS, -(-count * head.shape[-1] * 4 // chunk_bytes()))
        size = -(-count // chunks)
        order = jnp.argsort(~wanted.reshape(-1), stable=True)  # what is wanted comes first
        places = jnp.pad(order, (0, chunks * size - count)).reshape(chunks, size)
        hidden, targets = hidden.reshape(count, -1), targets.reshape(-1)

        def found(place: Int[Array, "C"]) -> tuple[Array, ...]:
            logits, of_hidden = jax.vjp(lambda hidden: unembed(head, hidden), hidden[place])
            first, gradient, second = jax.vjp(lambda logits: of_logits(logits, targets[place]), logits, has_aux=True)
            return (first, second, *of_hidden(*gradient(jnp.ones_like(first)))) if differentiated else (first, second)

        def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, ...]:
            first, place = chunk
            kinds = jax.eval_shape(found, place)
            nothing = tuple(jnp.zeros(kind.shape, kind.dtype) for kind in kinds)
            return jax.lax.cond(first < wanted.sum(), found, lambda place: nothing, place)

        results = jax.lax.map(of_chunk, (jnp.arange(chunks) * size, places))
        back = jnp.argsort(order)
        laid = [x.reshape(chunks * size, *x.shape[2:])[back].reshape(*shape, *x.shape[2:]) for x in results]
        return tuple(jnp.where(wanted.reshape(*shape, *[1] * (x.ndim - 2)), x, 0) for x in laid)

    outputs = (_TOKENS,) * (2 + differentiated)
    return over_parts(on_rows, (None, _TOKENS, _TOKENS, _TOKENS), outputs)(head, hidden, targets, wanted)
