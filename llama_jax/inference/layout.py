"""The layout of parameters for decoding: a list of layers, in the type of computation. Made leaf by leaf, so that of a
model whose parameters are given up for it no second copy is ever there."""

import functools
import math
import mmap
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llama_jax.core import tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.model import paths
from llama_jax.model.llama import LanguageModel
from llama_jax.model.quantized import computed_type
from llama_jax.model.transposed import Transposed

_ALIGNMENT = 64
"""Bytes. XLA for CPU takes host memory that is aligned so as it lies, without a copy."""
_HUGE_PAGE = 2**21


def decoding_params(model: LanguageModel, params: PyTree, *, consume: bool = False) -> PyTree:
    """Parameters in the list layout, cast to the type of computation. Several adapters get one more behind them, which
    is zero, for rows that want the base alone.

    On a CPU they lie as it reads them fastest: kernels `Transposed`, as is the table where it is the head too, and all
    in huge pages, of which a step reads up to a third more a second.

    Args:
        params: scanned layout; of a base that stays, its adapter alone will do.
        consume: delete each array of `params` as soon as it is not needed any more; those that stay as they are, stay.
    """
    given, dtype = tree.flatten(params), jnp.dtype(model.compute.dtype)
    several = _has_several_adapters(given)
    left, found = dict(given), {}
    while left:
        path, leaf = next(iter(left.items()))
        result, together = computed_type(path, leaf.dtype, dtype), [path]
        if paths.is_adapter(path) or not _is_on_one_cpu(leaf):
            made = _on_devices(path, _with_one_more(leaf) if several and paths.is_adapter(path) else leaf, result)
        elif paths.is_plain_kernel(path):
            together = [each for each in paths.side_by_side(path) if each in left]
            made = _transposed([(each, left[each]) for each in together], result)
        else:
            made = _in_host_memory(path, leaf, result)
        found |= jax.block_until_ready(made)
        for used in map(left.pop, together):
            if consume and not any(used is kept for kept in made.values()):
                used.delete()
    if paths.HEAD not in found and paths.TABLE in found and _is_on_one_cpu(found[paths.TABLE]):
        found[paths.HEAD] = Transposed(found[paths.TABLE], 0, len(found[paths.TABLE]))
    return tree.unflatten(found)


def in_layers(dtype: jnp.dtype, params: PyTree) -> PyTree:
    """The same of all but a single CPU, as one function of the arrays, which can be traced; of no adapter or of one.

    Args:
        dtype: type of computation.
    """
    found = {}
    for path, leaf in tree.flatten(params).items():
        found |= _on_devices(path, leaf, computed_type(path, leaf.dtype, dtype))
    return tree.unflatten(found)


def _has_several_adapters(leaves: dict[str, Array]) -> bool:
    scales = (leaf for path, leaf in leaves.items() if paths.is_adapter(path) and paths.name_of(path) == "scale")
    return any(scale.ndim > 1 for scale in scales)


def _with_one_more(leaf: Array) -> Array:
    return jnp.pad(leaf, [(0, axis == 1) for axis in range(leaf.ndim)])


def _is_on_one_cpu(leaf: Array) -> bool:
    (device, *others) = leaf.sharding.device_set
    return not others and device.platform == "cpu"


def _names(path: str, leaf: Array) -> list[str]:
    return [paths.of_layer(path, layer) for layer in range(len(leaf))] if paths.in_layers(path) else [path]


def _on_devices(path: str, leaf: Array, dtype: jnp.dtype) -> dict[str, Array]:
    if not paths.in_layers(path):
        return {path: leaf.astype(dtype)}
    return dict(zip(_names(path, leaf), _layers(leaf, dtype), strict=True))


@functools.partial(jax.jit, static_argnums=1)
def _layers(leaf: Array, dtype: jnp.dtype) -> list[Array]:
    return [leaf[layer].astype(dtype) for layer in range(len(leaf))]


def _in_host_memory(path: str, leaf: Array, dtype: jnp.dtype) -> dict[str, Array]:
    stored = np.asarray(leaf)
    parts = stored if paths.in_layers(path) else stored[None]
    copies = _copies([[part] for part in parts], dtype, _place(leaf))
    return dict(zip(_names(path, leaf), copies, strict=True))


def _transposed(kernels: Sequence[tuple[str, Array]], dtype: jnp.dtype) -> dict[str, Transposed]:
    """Kernels of one input. The first has the array of all."""
    path, leaf = kernels[0]
    stored = [np.asarray(kernel) if paths.in_layers(path) else np.asarray(kernel)[None] for _, kernel in kernels]
    together = [[kernel.T for kernel in of_layer] for of_layer in zip(*stored, strict=True)]
    copies: list[Any] = _copies(together, dtype, _place(leaf))
    found, first = {}, 0
    for path, kernel in kernels:
        count = kernel.shape[-1]
        for name, array in zip(_names(path, kernel), copies, strict=True):
            found[name] = Transposed(array, first, count)
        copies, first = [None] * len(copies), first + count
    return found


def _place(leaf: Array) -> Any:
    # The spec of a stack may have more axes than one of its layers.
    sharding = leaf.sharding
    return jax.NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, jax.NamedSharding) else sharding


def _copies(arrays: Sequence[Sequence[np.ndarray]], dtype: jnp.dtype, place: Any) -> list[Array]:
    """Each list of matrices (or the one array that it holds), one below the other, in memory of their own."""
    shapes = [(sum(map(len, parts)), *parts[0].shape[1:]) for parts in arrays]
    sizes = [-(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for shape in shapes]
    memory, start, copies = _memory(sum(sizes)), 0, []
    for parts, shape, size in zip(arrays, shapes, sizes, strict=True):
        copy = memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        first = 0
        for part in parts:
            np.copyto(copy[first : first + len(part)], part, casting="same_kind")
            first += len(part)
        copies.append(jax.device_put(copy, place))
        start += size
    return copies


def _memory(size: int) -> np.ndarray:
    """So many bytes, in huge pages if there are any."""
    memory = mmap.mmap(-1, size + _HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= _HUGE_PAGE:
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, np.uint8)
    return everything[-everything.ctypes.data % _HUGE_PAGE :]
