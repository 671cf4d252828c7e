"""Sums of -log p(target) and their gradients, in chunks, so that the logits of a whole batch are never alive at once.

Knows heads and hidden states, but no batch and no model."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Float, Int
from llama_jax.core.mesh import platform
from llama_jax.core.sharding import Summed, over_parts

CHUNK_BYTES: Mapping[str, int] = {"cpu": 128 * 2**20, "tpu": 128 * 2**20, "gpu": 2 * 2**30}
"""Size of the float32 logits of one chunk on a device, at the most, by platform. Each chunk reads the head, and adds to
its gradient in float32: with 128,256 tokens, 128 MiB are 256 rows, for which a GPU waits on its memory (some 700 rows
make as much work of either kind on an H100); 2 GiB are 4,096."""

_TOKENS = ("batch", "length")
_INPUTS = (None, _TOKENS, _TOKENS, _TOKENS)
"""Logical axes of head, hidden, targets and weights."""

Unembed: TypeAlias = Callable[[Float[Array, "D V"], Float[Array, "*B D"]], Float[Array, "*B V"]]


@jax.custom_vjp
def logprobs_of(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> tuple[Array, Array]:
    """log p(target), and log(Z), of each row of logits.

    The gradient is written in one pass over the logits, softmax minus one-hot; derived, it would be made of several
    arrays as large as they are.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_z, log_z


def _logprobs_forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    logprobs, log_z = logprobs_of(logits, targets)
    return (logprobs, log_z), (logits, targets, log_z)


def _logprobs_backward(kept: tuple[Array, ...], cotangents: tuple[Array, Array]) -> tuple[Array, None]:
    logits, targets, log_z = kept
    by_logprob, by_log_z = (cotangent[..., None] for cotangent in cotangents)
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    probabilities = jnp.exp(logits - log_z[..., None])
    return jnp.where(is_target, by_logprob, 0.0) + (by_log_z - by_logprob) * probabilities, None


logprobs_of.defvjp(_logprobs_forward, _logprobs_backward)


@jax.named_scope("cross_entropy")
def summed_cross_entropy(
    unembed: Unembed,
    z_loss: float,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sums of -log p(target) and of log(Z)^2, differentiable in `head` and `hidden`.

    The gradient is that of the first plus `z_loss` times the second, and is computed chunk by chunk during the forward
    pass: each chunk's logits are used at once and never made again. Only the two sums together are therefore
    differentiated; their cotangents must be 1 : z_loss, as `next_token` adds them.
    """

    def values(head: Any, hidden: Any) -> tuple[Array, Array]:
        def body(_: None, chunk: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
            hidden, *of_loss = chunk
            return None, _sums(unembed(head, hidden), *of_loss)

        def on_rows(head: Array, *rows: Array) -> tuple[Array, Array]:
            _, (nll, square) = jax.lax.scan(body, None, chunks(head.shape[-1], *rows))
            return nll.sum(), square.sum()

        return over_parts(on_rows, _INPUTS, (Summed(), Summed()))(head, hidden, targets, weights)

    def forward(head: Any, hidden: Any) -> tuple[tuple[Array, Array], tuple[Array | None, Array]]:
        # `perturbed` says whether a gradient is asked for: a frozen head costs no third product.
        return sums_and_gradients(unembed, z_loss, head.value, hidden.value, targets, weights, of_head=head.perturbed)

    def backward(gradients: tuple[Array | None, Array], cotangents: tuple[Any, Any]) -> tuple[Array | None, Array]:
        head_gradient, hidden_gradient = gradients
        scale = cotangents[0]
        scaled = (hidden_gradient * scale).astype(hidden_gradient.dtype)
        return None if head_gradient is None else (head_gradient * scale).astype(head_gradient.dtype), scaled

    sums = jax.custom_vjp(values)
    sums.defvjp(forward, backward, symbolic_zeros=True)
    return sums(head, hidden)


def sums_and_gradients(
    unembed: Unembed,
    z_loss: float,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    of_head: bool,
) -> tuple[tuple[Array, Array], tuple[Array | None, Array]]:
    """The sums of `summed_cross_entropy`, and the gradients of the first plus `z_loss` times the second in the head
    (None unless `of_head`) and in the hidden states."""

    def loss(logits: Array, targets: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
        nll, square = _sums(logits, targets, weights)
        return nll + z_loss * square, (nll, square)

    def on_rows(head: Array, *rows: Array) -> tuple[Array, ...]:
        def body(head_gradient: Array | None, chunk: tuple[Array, ...]) -> tuple[Array | None, tuple[Array, ...]]:
            hidden, *of_loss = (array.reshape(-1, *array.shape[2:]) for array in chunk)
            logits, of_hidden = jax.vjp(lambda hidden: unembed(head, hidden), hidden)
            by_logits, sums = jax.grad(loss, has_aux=True)(logits, *of_loss)
            if head_gradient is not None:
                # Of a sum over rows XLA for CPU has fast code where the rows come last in the first factor. The barrier
                # keeps the compiler from turning them back.
                turned = jax.lax.optimization_barrier(hidden.T).T
                of_head = jax.vjp(lambda head: unembed(head, turned), head)[1]
                head_gradient += of_head(by_logits)[0].astype(jnp.float32)
            return head_gradient, (*sums, of_hidden(by_logits)[0].reshape(chunk[0].shape))

        start = jnp.zeros(head.shape, jnp.float32) if of_head else None
        head_gradient, (nll, square, hidden_gradient) = jax.lax.scan(body, start, chunks(head.shape[-1], *rows))
        results = (nll.sum(), square.sum(), joined(hidden_gradient))
        return results if head_gradient is None else (*results, head_gradient)

    outputs = [Summed(), Summed(), _TOKENS]
    if of_head:
        # Added up in float32 on a device, and sent in the type in which all gradients of weights are.
        outputs.append(Summed(("embed", "vocab"), head.dtype))
    results = over_parts(on_rows, _INPUTS, outputs)(head, hidden, targets, weights)
    # The head's gradient is reduced before the layers' backward pass begins, which otherwise holds it whole.
    nll, square, hidden_gradient, *rest = jax.lax.optimization_barrier(results)
    return (nll, square), (rest[0] if rest else None, hidden_gradient)


def _sums(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], weights: Float[Array, "*B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logprobs, log_z = logprobs_of(logits, targets)
    return jnp.sum(weights * -logprobs), jnp.sum(weights * jnp.square(log_z))


def chunk_bytes() -> int:
    """`CHUNK_BYTES` of the mesh in use."""
    return CHUNK_BYTES[platform()]


def chunk_count(rows: int, length: int, vocabulary: int) -> int:
    """How many equal chunks the rows on a device are cut into along their length, as few as `chunk_bytes` allows."""
    fewest = -(-rows * length * vocabulary * 4 // chunk_bytes())
    return next(count for count in range(1, length + 1) if length % count == 0 and (count >= fewest or count == length))


def chunks(vocabulary: int, *rows: Array) -> tuple[Array, ...]:
    """Rows `[B, T, …]` cut along T into `chunk_count` equal chunks `[C, B, T/C, …]`."""
    B, T = rows[0].shape[:2]
    count = chunk_count(B, T, vocabulary)
    return tuple(jnp.moveaxis(x.reshape(B, count, T // count, *x.shape[2:]), 1, 0) for x in rows)


def joined(chunks: Array) -> Array:
    """Rows again, from their chunks."""
    count, B, T = chunks.shape[:3]
    return jnp.moveaxis(chunks, 0, 1).reshape(B, count * T, *chunks.shape[3:])
