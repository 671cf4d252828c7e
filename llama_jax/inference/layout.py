"""The layout of parameters for decoding: a list of layers, in the type of computation. Made leaf by leaf, so that of a
model whose parameters are given up for it no second copy is ever there."""

import functools
import mmap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core import tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.model import paths
from llama_jax.model.llama import LanguageModel
from llama_jax.model.quantized import computed_type

_ALIGNMENT = 64
"""Bytes. XLA for CPU takes host memory that is aligned so as it lies, without a copy."""
_HUGE_PAGE = 2**21


def decoding_params(model: LanguageModel, params: PyTree, *, consume: bool = False) -> PyTree:
    """Parameters in the list layout, cast to the type of computation. Several adapters get one more behind them, which
    is zero, for rows that want the base alone.

    On a CPU they lie as it reads them fastest: kernels as their transposes (`model.quantized.Weight`), in huge pages,
    of which a step reads up to a third more a second.

    Args:
        params: scanned layout.
        consume: delete each array of `params` as soon as it is not needed any more; those that stay as they are, stay.
    """
    several = _has_several_adapters(params)
    dtype = jnp.dtype(model.compute.dtype)
    leaves: dict[str, Any] = {}
    for path, leaf in tree.flatten(params).items():
        result = computed_type(path, leaf.dtype, dtype)
        padded = _with_one_more(leaf) if several and paths.is_adapter(path) else leaf
        make = _in_host_memory if _is_on_one_cpu(leaf) else _on_devices
        made = jax.block_until_ready(make(path, padded, result))
        if consume and not any(leaf is other for other in made.values()):
            leaf.delete()
        leaves |= made
    return tree.unflatten(leaves)


def _has_several_adapters(params: PyTree) -> bool:
    leaves = tree.flatten(params).items()
    return any(paths.is_adapter(path) and paths.name_of(path) == "scale" and leaf.ndim > 1 for path, leaf in leaves)


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
    names, stored = _names(path, leaf), np.asarray(leaf)
    parts = list(stored) if paths.in_layers(path) else [stored]
    if paths.is_plain_kernel(path):
        names, parts = [f"{name}/transposed" for name in names], [part.T for part in parts]
    sizes = [-(-part.size * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for part in parts]
    memory = _memory(sum(sizes))
    found, start = {}, 0
    for name, part, size in zip(names, parts, sizes, strict=True):
        own = memory[start : start + part.size * dtype.itemsize].view(dtype).reshape(part.shape)
        np.copyto(own, part, casting="same_kind")
        found[name] = jax.device_put(own, leaf.sharding)
        start += size
    return found


def _memory(size: int) -> np.ndarray:
    """So many bytes, in huge pages if there are any."""
    memory = mmap.mmap(-1, size + _HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= _HUGE_PAGE:
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, np.uint8)
    return everything[-everything.ctypes.data % _HUGE_PAGE :]
