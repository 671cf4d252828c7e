"""The parts of a block that hold parameters, and the one door through which modules meet parameters."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, Int, PyTree
from llama_jax.core.sharding import Axes, constrain, size_of, with_gathered
from llama_jax.model.low_rank import PRODUCTS, Factors, adapted, dropped, ready
from llama_jax.model.quantized import Weight, gathered_weight, is_quantized, quantized_matmul
from llama_jax.model.rope import Rotation
from llama_jax.model.transposed import Transposed, transposed_matmul

Initializer = Callable[..., Any]


class Declared(nn.LogicallyPartitioned):
    """A parameter with what was declared of it."""

    decays: bool = struct.field(pytree_node=False, default=False)


def param(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: Axes, *, decays: bool) -> Any:
    """The one door between modules and parameters.

    At initialisation it declares the parameter to Linen; at apply it hands out whatever the tree holds under that name,
    which need not be a plain array (Linen's own lookup would insist on the declared shape).

    Args:
        axes: Logical axes.
        decays: Whether weight decay applies to it, as it should to matrices, and not to vectors such as scales.
    """
    if module.is_initializing():
        return nn.unbox(module.param(name, lambda key: Declared(init(key, shape), axes, decays=decays)))
    return module.get_variable("params", name)


def decaying(declared: PyTree) -> frozenset[str]:
    """Paths of the declared parameters that weight decay applies to."""
    leaves = tree.flatten(declared, is_leaf=lambda node: isinstance(node, Declared))
    return frozenset(path for path, leaf in leaves.items() if leaf.decays)


def matmul(x: Float[Array, "*batch I"], weight: Weight) -> Float[Array, "*batch O"]:
    """The product with a weight, quantised or not. Accumulates in float32 where the hardware computes in bfloat16."""
    product = _product_with(weight)
    if size_of("length") > 1:
        # Split along both of its axes, a batch has no rows that could be laid end to end where they are.
        return product(x, weight)
    # As one matrix: the gradient of the weight, a sum over rows, is then a plain product too. Summed over two axes, XLA
    # for CPU first copies its inputs into another order, and has slower code for it besides.
    made = product(x.reshape(-1, x.shape[-1]), weight)
    return made.reshape(*x.shape[:-1], made.shape[-1])


def _product_with(weight: Weight) -> Callable[[Array, Weight], Array]:
    if isinstance(weight, Transposed):
        return transposed_matmul
    return quantized_matmul if is_quantized(weight) else jnp.dot


def normal(stddev: float) -> Initializer:
    """Normal initialisation with the given standard deviation."""
    return nn.initializers.normal(stddev)


class Cached(NamedTuple):
    """Where in a cache tokens are written, and what is read of it."""

    positions: Int[Array, "B T"]
    """Slot of each token."""
    rows: Int[Array, "B"] | None
    """Row of the cache; None: each row its own."""
    longest: Int[Array, ""]
    """Slots of a row that are read at the least."""


class Rows(struct.PyTreeNode):
    """What every layer is told of the rows it works on."""

    rotation: Annotated[Any, Rotation]
    """Angles of the rotary positions."""
    segment_ids: Annotated[Any, Int[Array, "B T"]] = None
    """Document of each token; None: one document a row."""
    cached: Any = None
    """Where in a cache the tokens are; None without one."""
    adapter_ids: Annotated[Any, Int[Array, "B"]] = None
    """The adapter of each row, where the parameters hold several."""
    dropout: float = struct.field(pytree_node=False, default=0.0)
    """Rate of the dropout before the factors of an adapter."""
    prefix_ids: Annotated[Any, Int[Array, "B T"]] = None
    """A second document that each token sees, its own where there is none; None: no token sees another."""


class Linear(nn.Module):
    """A matrix product without bias, and what an adapter adds to it where the collection `lora` holds one for it:
    `[B, T, I] -> [B, T, features]`. Named `PRODUCTS` for `jax.checkpoint`.

    Attributes:
        features: size of the output.
        axes: logical axes of the kernel, input first.
        dtype: type of the product.
        scale: factor on the initial standard deviation of 1/sqrt(I).
    """

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"], rows: Rows) -> Float[Array, "B T O"]:
        shape = (x.shape[-1], self.features)
        kernel = param(self, "kernel", normal(self.scale * shape[0] ** -0.5), shape, self.axes, decays=True)

        def gathered() -> Weight:
            return gathered_weight(kernel, self.axes, self.dtype)

        if is_quantized(kernel) or isinstance(kernel, Transposed):
            product = matmul(x, gathered())
        else:
            product = with_gathered(matmul, x, kernel, self.axes, self.dtype)
        if not self.has_variable("lora", "a"):
            return checkpoint_name(product, PRODUCTS)
        names = ("a", "b", "scale", "magnitude")
        factors = Factors(*(self.get_variable("lora", name) for name in names))
        if rows.dropout:
            x = dropped(x, rows.dropout, self.make_rng("dropout"))
        factors = ready(factors, self.axes, self.dtype)
        return checkpoint_name(adapted(product, x, gathered, factors, rows.adapter_ids), PRODUCTS)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4), computed in float32."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = param(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",), decays=False)
        with jax.named_scope("rms_norm"):
            x = x.astype(jnp.float32)
            mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
            normalized = x * jax.lax.rsqrt(mean_square + self.epsilon)
            return (normalized * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))).astype(self.dtype)


class Embedding(nn.Module):
    """A row of the table for each token. The table has `rows` rows, of which ids use the first `vocab_size`."""

    rows: int
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        shape = (self.rows, self.width)
        self.table = param(self, "table", normal(self.width**-0.5), shape, ("vocab", "embed"), decays=True)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # The table is not gathered: each device of an fsdp group looks the tokens of the whole group up in its part of
        # the width, and an exchange of the results gives every device its own rows whole.
        tokens = constrain(tokens, ("group", None))
        rows = jnp.take(self.table.astype(self.dtype), tokens, axis=0)
        rows = constrain(rows, ("group", None, "embed"))
        # One mesh axis after the other: of both at once the compiler makes a gather of everything.
        rows = constrain(rows, ("group", "length", "looked_up"))
        return constrain(rows, ("batch", "length", "residual"))
