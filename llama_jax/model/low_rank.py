"""The mathematics of one adapted Linear: what the factors A and B add to the product with a frozen weight W (LoRA,
arXiv:2106.09685, equation 3), and how a magnitude rescales it (DoRA, arXiv:2402.09353, equation 5).

A product with W + scale A B is never formed by making that matrix."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from llama_jax.core.arrays import Array, Float, Int, PRNGKeyArray
from llama_jax.core.sharding import constrain, gathered
from llama_jax.model.quantized import Weight, dequantize

PRODUCTS = "products"
"""What the policies of `jax.checkpoint` call the outputs of Linears, and what adapters need besides to make their
gradients."""


class Factors(struct.PyTreeNode):
    """The factors of one Linear, float32. Of several adapters, each array has their axis first."""

    DECAYING: ClassVar = ("a", "b")
    """The fields that weight decay applies to."""

    a: Annotated[Any, Float[Array, "*A I R"]]
    b: Annotated[Any, Float[Array, "*A R O"]]
    scale: Annotated[Any, Float[Array, "*A"]]
    """Factor on A B."""
    magnitude: Annotated[Any, Float[Array, "*A O"]] = None
    """DoRA's length of each column. A column whose magnitude is 0 is not rescaled, so that adapters without can stand
    beside others (and a column of W that is 0 at the start divides nothing)."""


def ready(factors: Factors, axes: tuple[str, str], dtype: jnp.dtype) -> Factors:
    """The factors as they enter products: the scale multiplied into B, cast, and gathered along `fsdp`."""
    several = ("adapters",) * (factors.a.ndim - 2)
    scaled = factors.b * factors.scale[..., None, None]
    return factors.replace(
        a=gathered(factors.a, (*several, axes[0], "rank"), dtype),
        b=gathered(scaled, (*several, "rank", axes[1]), dtype),
        magnitude=None if factors.magnitude is None else constrain(factors.magnitude, (*several, None)),
    )


@jax.named_scope("low_rank_adaptation")
def adapted(
    product: Float[Array, "B T O"],
    x: Float[Array, "B T I"],
    weight: Callable[[], Weight],
    factors: Factors,
    adapter_ids: Int[Array, "B"] | None,
) -> Float[Array, "B T O"]:
    """The output of an adapted Linear.

    Args:
        product: x W.
        x: Input, after the adapter's dropout. (DoRA's rescaling applies to `product` as it is, where PEFT drops the
            input there too and so multiplies by W twice.)
        weight: gives W, gathered, which DoRA alone asks for.
        factors: see `ready`.
        adapter_ids: the adapter of each row, where there are several.
    """
    if factors.a.ndim == 2:
        product = product + factors_product(x, factors.a, factors.b)
    elif adapter_ids is None:
        raise ValueError("the parameters hold several adapters: adapter_ids must say which one each row takes")
    else:
        product = product + _by_row(x, factors.a, factors.b, adapter_ids)
    if factors.magnitude is None:
        return product
    by_column = checkpoint_name(rescaling(weight(), factors), PRODUCTS)
    by_column = by_column[None, None] if factors.a.ndim == 2 else by_column[adapter_ids][:, None]
    return (product.astype(jnp.float32) * by_column).astype(product.dtype)


@jax.custom_vjp
def factors_product(x: Float[Array, "B T I"], a: Float[Array, "I R"], b: Float[Array, "R O"]) -> Float[Array, "B T O"]:
    """x A B. The gradients are the usual ones, in the order for which XLA for CPU has fast code: derived by themselves
    they take ten times as long (with rank 8 on every Linear of SmolLM2-135M, 1024 tokens: 7.1 s of processor time a
    step instead of 4.5 s)."""
    return (x @ a) @ b


def _forward(x: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    projected = checkpoint_name(x @ a, PRODUCTS)
    return projected @ b, (x, a, b, projected)


def _backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, a, b, projected = kept
    by_projected = gradient @ b.T
    # The short side first: that is the fast way round, to which the barrier holds the compiler.
    by_a = jax.lax.optimization_barrier(jnp.einsum("BTR,BTI->RI", by_projected, x)).T
    return by_projected @ a.T, by_a, jnp.einsum("BTR,BTO->RO", projected, gradient)


factors_product.defvjp(_forward, _backward)


DENSE_COLUMNS = 256
"""Columns of the A of all adapters together, up to which every row is multiplied by all of them."""


def _by_row(
    x: Float[Array, "B T I"], a: Float[Array, "A I R"], b: Float[Array, "A R O"], adapter_ids: Int[Array, "B"]
) -> Float[Array, "B T O"]:
    """x A B, each row by the factors of its adapter."""
    count, inputs, rank = a.shape
    if count * rank > DENSE_COLUMNS:
        return jnp.einsum("BTR,BRO->BTO", jnp.einsum("BTI,BIR->BTR", x, a[adapter_ids]), b[adapter_ids])
    # Two plain products, with what belongs to other adapters zeroed between them. The columns are few enough for a TPU
    # not to notice, and a CPU reads each adapter once instead of once a row (eight rows decoded, three adapters of rank
    # 8: 41 ms instead of 68 ms a token, 38 ms with one adapter).
    projected = x @ jnp.moveaxis(a, 0, 1).reshape(inputs, count * rank)
    own = jnp.repeat(adapter_ids[:, None] == jnp.arange(count)[None], rank, axis=1)
    return jnp.where(own[:, None], projected, 0) @ b.reshape(count * rank, -1)


def rescaling(weight: Weight, factors: Factors) -> Float[Array, "*A O"]:
    """DoRA's factor on each output: magnitude / |column of W + scale A B|, float32.

    The length is a constant to the backward pass (arXiv:2402.09353, section 4.3). It is taken from the parts, as
    |w|^2 + 2 w.(A b) + |A b|^2, which costs a product of A with W instead of one of A with B as large as W.
    """
    a, b = jax.lax.stop_gradient((factors.a, factors.b))
    plain = jax.lax.stop_gradient(dequantize(weight, a.dtype))
    crossed = jnp.einsum("...IR,IO->...RO", a, plain, preferred_element_type=jnp.float32)
    gram = jnp.einsum("...IR,...IS->...RS", a, a, preferred_element_type=jnp.float32)
    b = b.astype(jnp.float32)
    own = jnp.expand_dims(squared_lengths(plain), tuple(range(a.ndim - 2)))
    squared = own + jnp.sum((2 * crossed + gram @ b) * b, axis=-2)
    length = jnp.sqrt(jnp.maximum(squared, 0))
    return jnp.where(factors.magnitude == 0, 1.0, factors.magnitude / jnp.where(length > 0, length, 1.0))


def squared_lengths(weight: Float[Array, "I O"]) -> Float[Array, "O"]:
    """Squared length of each column, float32."""
    return jnp.sum(jnp.square(weight.astype(jnp.float32)), axis=0)


def dropped(x: Float[Array, "B T I"], rate: float, key: PRNGKeyArray) -> Float[Array, "B T I"]:
    """Inverted dropout: elements are zeroed with probability `rate` (to 16 bits), the others scaled up for it."""
    B, T, inputs = x.shape
    # Half a random word is enough for an element, and words are what dropout costs. Halves are laid out along T, which
    # is never split among devices.
    words = jax.random.bits(key, (B, -(-T // 2), inputs), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=1)[:, :T]
    threshold = round(rate * 2**16)
    return jnp.where(halves >= threshold, x * (2**16 / (2**16 - threshold)), 0).astype(x.dtype)
