"""The legend of array axes, used in every signature, einsum string and suffix of the package.

    B  batch (rows)            D  model width             V  vocabulary
    T  query positions         F  MLP width               R  LoRA rank
    S  key positions           N  query heads             L  layers
    H  head size               K  key/value heads         G  query heads per key/value head (N = K G)
    I  inputs of a Linear      O  outputs of a Linear     A  adapters

A name such as `query_BTNH` says which axes an array has where the layout is not obvious.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt32

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import PRNGKeyArray

PyTree: TypeAlias = Any
"""A nested dictionary, list or tuple of arrays (or of anything that stands for one)."""

__all__ = ["Array", "Bool", "Float", "Int", "Integer", "PRNGKeyArray", "PyTree", "Shaped", "UInt32"]


def __getattr__(name: str) -> Any:
    # JAX takes seconds and 130 MB, which processes that only read data spare themselves.
    if name == "Array":
        import jax

        return jax.Array
    if name == "PRNGKeyArray":
        import jaxtyping

        return jaxtyping.PRNGKeyArray
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
