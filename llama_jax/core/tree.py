"""Parameter trees: nested dictionaries of arrays, addressed by paths such as `layers/attention/q_proj/kernel`.

Independent of what the arrays mean."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from llama_jax.core.arrays import Array, PyTree, UInt32


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by path, in the order of the tree. Works on any pytree; sequence indices and field names become parts of
    the path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> PyTree:
    """The nested dictionary with the given leaves; the inverse of `flatten` for trees of dictionaries."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def split(tree: PyTree, select: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Part a tree of dictionaries in two by path: (selected, rest). `join` puts them together again."""
    leaves = flatten(tree)
    selected = unflatten({path: leaf for path, leaf in leaves.items() if select(path)})
    return selected, unflatten({path: leaf for path, leaf in leaves.items() if not select(path)})


def join(first: PyTree, second: PyTree) -> PyTree:
    """The union of two trees of dictionaries that share no leaf."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        raise ValueError("both trees have a leaf at the same path")
    return {
        key: join(first[key], second[key]) if key in first and key in second else first.get(key, second.get(key))
        for key in sorted({*first, *second})
    }


def size(tree: PyTree) -> int:
    """Number of elements in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    """Floating-point leaves in the given type, others as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def _mix(bits: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Scatter the bits of each element (the finaliser of lowbias32, Wellons 2018)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _fingerprint(leaf: Array, start: UInt32[Array, ""]) -> UInt32[Array, "2"]:
    """Of consecutive elements, the first of which has the flat index `start` modulo 2^32."""
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        leaf = leaf.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return _bits_fingerprint(jax.lax.bitcast_convert_type(leaf, width), start)


def _bits_fingerprint(bits: Array, start: UInt32[Array, ""]) -> UInt32[Array, "2"]:
    if bits.ndim > 2:
        # One layer after another: compilers for CPU make the arrays of indices and weights, 8 bytes an element.
        starts = start + jnp.arange(bits.shape[0], dtype=jnp.uint32) * jnp.uint32(math.prod(bits.shape[1:]) % 2**32)
        words = jax.lax.map(lambda layer: _bits_fingerprint(*layer), (bits, starts))
        return jnp.sum(words, axis=0, dtype=jnp.uint32)
    bits = bits.astype(jnp.uint32)
    index, stride = jnp.full(bits.shape, start), 1
    for axis in reversed(range(bits.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
        stride = (stride * bits.shape[axis]) & 0xFFFFFFFF
    weight = _mix(index + jnp.uint32(0x9E3779B9))
    return jnp.stack([jnp.sum(bits * (weight | 1), dtype=jnp.uint32), jnp.sum(_mix(bits ^ weight), dtype=jnp.uint32)])


@jax.jit
def fingerprints(tree: PyTree) -> PyTree:
    """64 bits for each leaf that depend on every bit and its place.

    Sums of integers modulo 2^32 do not depend on the order of summation, so the result is the same on any mesh; a
    checkpoint restored elsewhere can be compared with what was saved. Finds accidents, not forgeries.
    """
    return jax.tree.map(lambda leaf: _fingerprint(leaf, jnp.uint32(0)), tree)


_part_fingerprint = jax.jit(_fingerprint)


def part_fingerprint(part: np.ndarray | Array, start: int) -> np.ndarray:
    """What a part adds to the fingerprint of a leaf that is never in memory as a whole.

    Args:
        part: consecutive elements of the leaf, in any shape.
        start: index of the first of them in the flattened leaf.

    Returns:
        Two words, uint32; their sums over all parts modulo 2^32 are what `fingerprints` gives for the leaf.
    """
    return np.asarray(_part_fingerprint(part, np.uint32(start % 2**32)))
