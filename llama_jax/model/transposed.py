"""Kernels laid out as a CPU reads them fastest when it decodes: as their transposes, those of the Linears of one input
as one array."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.model import paths

FEW_ROWS = 16
"""Rows up to which a transpose with no more outputs than inputs is the first operand of a product."""


class Transposed(struct.PyTreeNode):
    """A kernel `[I, O]`: some of the columns of a matrix of which the transpose is kept."""

    array: Annotated[Any, Float[Array, "outputs I"]]
    """None: that of the first Linear of the same input, see `filled`."""
    first: int = struct.field(pytree_node=False)
    count: int = struct.field(pytree_node=False)

    @property
    def kernel(self) -> Float[Array, "I O"]:
        """The matrix that it stands for."""
        return self.array[self.first : self.first + self.count].T


def transposed_matmul(x: Float[Array, "*batch I"], weight: Transposed) -> Float[Array, "*batch O"]:
    """The product with a kernel; of one of several in an array, the compiler makes that with all of them, once."""
    outputs, inputs = weight.array.shape
    # Barriers keep XLA for CPU from making one loop of a product and what comes before it, and from turning operands
    # back: both give slower code than its products have.
    x = jax.lax.optimization_barrier(x)
    if x.ndim == 2 and 1 < len(x) <= FEW_ROWS and inputs >= outputs:
        # Each row of the transpose is read once and in order (16 rows: 14 GB/s instead of 10).
        product = jax.lax.optimization_barrier(jnp.dot(weight.array, jax.lax.optimization_barrier(x.T))).T
    else:
        product = jax.lax.dot_general(x, weight.array, (((x.ndim - 1,), (1,)), ((), ())))
    return product[..., weight.first : weight.first + weight.count]


def filled(params: PyTree) -> PyTree:
    """Parameters in the list layout, of which each kernel has its array. For use inside of a compiled function: to that
    an array is given once, so that its products are known to be the same."""
    leaves = tree.flatten(params, is_leaf=lambda node: isinstance(node, Transposed))
    for path, leaf in leaves.items():
        if isinstance(leaf, Transposed) and leaf.array is None:
            leaves[path] = leaf.replace(array=leaves[paths.side_by_side(path)[0]].array)
    return tree.unflatten(leaves)
