"""Next-token cross-entropy, in chunks, so that the logits of a whole batch are never alive at once."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, Int, PRNGKeyArray, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.sharding import Summed, over_parts
from llama_jax.objectives.objective import Metrics, Objective

CHUNK_BYTES = 64 * 2**20
"""Size of the float32 logits of one chunk on a device, at the most."""

_TOKENS = ("batch", "length")
_INPUTS = (None, _TOKENS, _TOKENS, _TOKENS)
"""Logical axes of head, hidden, targets and weights."""

Unembed: TypeAlias = Callable[[Float[Array, "D V"], Float[Array, "B T D"]], Float[Array, "B T V"]]


@runtime_checkable
class Model(Protocol):
    """The functions of a model that a loss over tokens needs."""

    def hidden(self, params: PyTree, batch: TokenBatch, rng: PRNGKeyArray | None = None) -> Float[Array, "B T D"]: ...
    def head(self, params: PyTree) -> Float[Array, "D V"]: ...
    def unembed(self, head: Float[Array, "D V"], hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]: ...


def next_token(model: Model, z_loss: float = 0.0) -> Objective:
    """The mean negative log-likelihood of the targets in nats per token, plus `z_loss` times the mean of log(Z)^2
    (PaLM, arXiv:2204.02311, section 5), both weighted by `loss_weights`."""

    def objective(
        trainable: PyTree, frozen: PyTree, batch: TokenBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        params = tree.join(trainable, frozen)
        weights = batch.loss_weights / batch.normalizer
        nll, square = summed_cross_entropy(
            model.unembed, z_loss, model.head(params), model.hidden(params, batch, rng), batch.targets, weights
        )
        metrics = {"loss": nll}
        if z_loss:
            metrics["z_loss"] = z_loss * square
        return nll + z_loss * square, metrics

    return objective


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
            return None, _chunk_sums(unembed, head, *chunk)

        def on_rows(head: Array, *rows: Array) -> tuple[Array, Array]:
            _, (nll, square) = jax.lax.scan(body, None, _chunks(head.shape[-1], *rows))
            return nll.sum(), square.sum()

        return over_parts(on_rows, _INPUTS, (Summed(), Summed()))(head, hidden, targets, weights)

    def forward(head: Any, hidden: Any) -> tuple[tuple[Array, Array], tuple[Array | None, Array]]:
        # `perturbed` says whether a gradient is asked for: a frozen head costs no third product.
        head_gradient_wanted, head, hidden = head.perturbed, head.value, hidden.value

        def loss(head: Array, *chunk: Array) -> tuple[Array, tuple[Array, Array]]:
            nll, square = _chunk_sums(unembed, head, *chunk)
            return nll + z_loss * square, (nll, square)

        gradient = jax.grad(loss, argnums=(0, 1) if head_gradient_wanted else (1,), has_aux=True)

        def on_rows(head: Array, *rows: Array) -> tuple[Array, ...]:
            def body(head_gradient: Array | None, chunk: tuple[Array, ...]) -> tuple[Array | None, tuple[Array, ...]]:
                gradients, sums = gradient(head, *chunk)
                if head_gradient is not None:
                    head_gradient += gradients[0].astype(jnp.float32)
                return head_gradient, (*sums, gradients[-1])

            start = jnp.zeros(head.shape, jnp.float32) if head_gradient_wanted else None
            head_gradient, (nll, square, hidden_gradient) = jax.lax.scan(body, start, _chunks(head.shape[-1], *rows))
            hidden_gradient = jnp.moveaxis(hidden_gradient, 0, 1).reshape(rows[0].shape)
            results = (nll.sum(), square.sum(), hidden_gradient)
            return results if head_gradient is None else (*results, head_gradient)

        outputs = [Summed(), Summed(), _TOKENS]
        if head_gradient_wanted:
            # Added up in float32 on a device, and sent in the type in which all gradients of weights are.
            outputs.append(Summed(("embed", "vocab"), head.dtype))
        results = over_parts(on_rows, _INPUTS, outputs)(head, hidden, targets, weights)
        # The head's gradient is reduced before the layers' backward pass begins, which otherwise holds it whole.
        nll, square, hidden_gradient, *rest = jax.lax.optimization_barrier(results)
        return (nll, square), (rest[0] if rest else None, hidden_gradient)

    def backward(gradients: tuple[Array | None, Array], cotangents: tuple[Any, Any]) -> tuple[Array | None, Array]:
        head_gradient, hidden_gradient = gradients
        scale = cotangents[0]
        scaled = (hidden_gradient * scale).astype(hidden_gradient.dtype)
        return None if head_gradient is None else (head_gradient * scale).astype(head_gradient.dtype), scaled

    sums = jax.custom_vjp(values)
    sums.defvjp(forward, backward, symbolic_zeros=True)
    return sums(head, hidden)


def chunk_count(rows: int, length: int, vocabulary: int) -> int:
    """How many equal chunks the rows on a device are cut into along their length, as few as `CHUNK_BYTES` allows."""
    fewest = -(-rows * length * vocabulary * 4 // CHUNK_BYTES)
    return next(count for count in range(1, length + 1) if length % count == 0 and (count >= fewest or count == length))


def _chunks(vocabulary: int, *rows: Array) -> tuple[Array, ...]:
    """Rows `[B, T, …]` cut along T into `chunk_count` equal chunks `[C, B, T/C, …]`."""
    B, T = rows[0].shape[:2]
    count = chunk_count(B, T, vocabulary)
    return tuple(jnp.moveaxis(x.reshape(B, count, T // count, *x.shape[2:]), 1, 0) for x in rows)


def _chunk_sums(
    unembed: Unembed,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits = unembed(head, hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (log_z - target_logits)), jnp.sum(weights * jnp.square(log_z))
