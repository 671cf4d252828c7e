"""log p(target) at each position, from hidden states: what losses, held-out evaluation and scoring have in common."""

from collections.abc import Callable
from typing import Any

import jax

from llama_jax.core.arrays import Array, Float, Int, PyTree
from llama_jax.core.sharding import over_parts, size_of
from llama_jax.objectives.cross_entropy import Unembed, chunks, joined, logprobs_of, sums_and_gradients


@jax.named_scope("token_logprobs")
def token_logprobs(
    unembed: Unembed, head: Float[Array, "D V"], hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """log p(target) at each position, in nats, float32; differentiable in `head` and `hidden`.

    The logits are made chunk by chunk, and once more in the backward pass. Where all that is wanted of them is a
    weighted sum with weights that do not depend on the parameters, `summed_cross_entropy` saves that.
    """

    def values(head: Any, hidden: Any) -> Array:
        return by_chunks(lambda logits, targets: logprobs_of(logits, targets)[0], unembed, head, hidden, targets)

    def forward(head: Any, hidden: Any) -> tuple[Array, tuple[Any, ...]]:
        # What is kept tells by its form whether the head's gradient is asked for.
        return values(head.value, hidden.value), (head.value, hidden.value, () if head.perturbed else None)

    def backward(kept: tuple[Any, ...], cotangent: Array) -> tuple[Array | None, Array]:
        head, hidden, of_head = kept
        # The gradient of the sum of cotangent * log p, which is that of -cotangent * -log p.
        return sums_and_gradients(unembed, 0.0, head, hidden, targets, -cotangent, of_head=of_head is not None)[1]

    logprobs = jax.custom_vjp(values)
    logprobs.defvjp(forward, backward, symbolic_zeros=True)
    return logprobs(head, hidden)


def by_chunks(
    function: Callable[[Float[Array, "B C V"], Int[Array, "B C"]], PyTree],
    unembed: Unembed,
    head: Float[Array, "D V"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
) -> PyTree:
    """What a function of logits and targets gives for each position: arrays `[B, T]`."""

    def on_rows(head: Array, hidden: Array, targets: Array) -> tuple[PyTree]:
        def of_chunk(chunk: tuple[Array, ...]) -> PyTree:
            return function(unembed(head, chunk[0]), chunk[1])

        found = jax.lax.map(of_chunk, chunks(head.shape[-1], hidden, targets))
        return (jax.tree.map(joined, found),)

    # A few positions of each row may be fewer than the devices that split rows.
    rows = ("batch", "length") if targets.shape[1] % size_of("length") == 0 else ("batch",)
    return over_parts(on_rows, (None, rows, rows), (rows,))(head, hidden, targets)[0]
