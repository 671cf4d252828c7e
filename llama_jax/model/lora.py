"""Adapters as trees: LoRA (Hu et al. 2021, arXiv:2106.09685) is a partition of the parameters by path.

    params = base | {"lora": adapter}
    adapter = {"layers": {"attention": {"q_proj": {"a": [L, I, R], "b": [L, R, O], "scale": [L]}, …}, "mlp": …}}

`scale` is part of the tree, so that a tree says by itself what it computes, and is never trained; a `magnitude`
[L, O] makes it DoRA. Several adapters have an axis for them behind the layers; a row takes one by `adapter_ids`.
All trees here are in the scanned layout. The mathematics of one Linear is in `low_rank.py`."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PRNGKeyArray, PyTree
from llama_jax.core.errors import UserError, nearest
from llama_jax.model import paths
from llama_jax.model.config import ALL_LINEAR, AdapterConfig
from llama_jax.model.low_rank import Factors, rescaling, squared_lengths
from llama_jax.model.quantized import Weight, block_kernels, dequantize, is_quantized, kernel_shape, map_kernels


def with_adapter(params: PyTree, adapter: PyTree) -> PyTree:
    """The parameters of a base with an adapter attached (or any two trees of the same form: shapes, axes)."""
    return params | {"lora": adapter}


def without_adapter(params: PyTree) -> tuple[PyTree, PyTree | None]:
    """The base alone, and the adapter if there is one."""
    return {name: subtree for name, subtree in params.items() if name != "lora"}, params.get("lora")


def is_trainable(config: AdapterConfig) -> Callable[[str], bool]:
    """Whether the parameter at a path is trained: the factors, magnitudes, and the modules to save."""
    saved = {paths.SAVED_MODULES[name] for name in config.modules_to_save}
    return lambda path: path in saved or (paths.is_adapter(path) and paths.name_of(path) != "scale")


def partition(params: PyTree, config: AdapterConfig) -> tuple[PyTree, PyTree]:
    """The parameters (with an adapter) as (trainable, frozen). Modules to save become float32, whatever the base is
    stored as: steps of training are too small for bfloat16."""
    trainable, frozen = tree.split(params, is_trainable(config))
    return tree.cast(trainable, jnp.dtype("float32")), frozen


def target_paths(config: AdapterConfig, base: PyTree) -> list[str]:
    """Paths of the Linears that are adapted, such as `layers/attention/q_proj`.

    Args:
        base: Parameters or their shapes.

    Raises:
        UserError: a pattern matches nothing, or a module to save does not exist.
    """
    modules = [paths.module_of(path) for path in block_kernels(base)]
    names = [paths.name_of(module) for module in modules]
    chosen: set[str] = set()
    for pattern in config.target_modules:
        found = {
            module
            for module, name in zip(modules, names, strict=True)
            if pattern == ALL_LINEAR or re.fullmatch(pattern, name) or re.fullmatch(pattern, module)
        }
        if not found:
            raise UserError(
                f"lora.target_modules: '{pattern}' matches no Linear{nearest(pattern, [*names, ALL_LINEAR])}; there "
                f"are {', '.join(names)}, in {', '.join(sorted(set(map(paths.module_of, modules))))}"
            )
        chosen |= found
    for name in config.modules_to_save:
        if name not in base:
            instead = "" if "score" in base else "; its head is the embedding table, so take embedding"
            raise UserError(f"lora.modules_to_save: the model has no {name}{instead}")
    return [module for module in modules if module in chosen]


def init_adapter(config: AdapterConfig, base: PyTree, key: PRNGKeyArray) -> PyTree:
    """A fresh adapter, which changes nothing yet: A uniform within +-1/sqrt(I) as PEFT draws it, B zero, and DoRA's
    magnitudes the lengths of the columns.

    Args:
        base: Parameters of the base, in any storage; without DoRA their shapes are enough.

    Raises:
        UserError: see `target_paths`.
    """
    kernels = block_kernels(base)
    leaves: dict[str, Array] = {}
    for module in target_paths(config, base):
        kernel = kernels[paths.kernel_of(module)]
        layers, inputs, outputs = kernel_shape(kernel)
        own = jax.random.fold_in(key, zlib.crc32(module.encode()))
        bound = inputs**-0.5
        leaves[f"{module}/a"] = jax.random.uniform(own, (layers, inputs, config.rank), minval=-bound, maxval=bound)
        leaves[f"{module}/b"] = jnp.zeros((layers, config.rank, outputs))
        leaves[f"{module}/scale"] = jnp.full(layers, config.scale, jnp.float32)
        if config.dora:
            leaves[f"{module}/magnitude"] = jax.lax.map(_lengths, kernel)
    return tree.unflatten(leaves)


def _lengths(kernel: Weight) -> Float[Array, "O"]:
    return jnp.sqrt(squared_lengths(dequantize(kernel, jnp.dtype("float32"))))


def adapter_axes(adapter: PyTree, base_axes: PyTree) -> PyTree:
    """Logical axes of each leaf of an adapter (or of its shapes), from those of the base's kernels."""
    axes = tree.flatten(base_axes)
    leaves = {}
    for path, leaf in tree.flatten(adapter).items():
        name = paths.name_of(path)
        layers, inputs, outputs = axes[paths.kernel_of(paths.module_of(path))]
        # A magnitude is as small as a norm's scale, and is kept whole like one.
        own = {"a": (inputs, "rank"), "b": ("rank", outputs), "scale": (), "magnitude": (None,)}[name]
        several = ("adapters",) * (len(leaf.shape) - 1 - len(own))
        leaves[path] = PartitionSpec(layers, *several, *own)
    return tree.unflatten(leaves)


def adapter_decays(adapter: PyTree) -> frozenset[str]:
    """Paths, beside those of the base, of the parameters of an adapter that weight decay applies to."""
    decaying = (path for path in tree.flatten(adapter) if paths.name_of(path) in Factors.DECAYING)
    return frozenset(map(paths.of_adapter, decaying))


def _factors(adapter: PyTree) -> dict[str, Factors]:
    """The factors of each adapted module by its path."""
    modules: dict[str, dict[str, Array]] = {}
    for path, leaf in tree.flatten(adapter).items():
        modules.setdefault(paths.module_of(path), {})[paths.name_of(path)] = leaf
    return {module: Factors(**leaves) for module, leaves in modules.items()}


def merge(params: PyTree, dtype: Literal["float32", "bfloat16"] = "bfloat16") -> PyTree:
    """The base with its adapter worked into the kernels: W + scale A B, with DoRA times its rescaling. Computed in
    float32, a layer at a time, and cast once to the type each kernel has.

    Args:
        dtype: Type of the kernels where the base is quantised; all of them are turned back.
    """
    base, adapter = without_adapter(params)
    if adapter is None:
        return base
    factors = _factors(adapter)
    if any(own.scale.ndim != 1 for own in factors.values()):
        raise ValueError("the tree holds several adapters; merge them one by one")

    def kernel(path: str, weight: Weight) -> Weight:
        own = factors.get(paths.module_of(path))
        if own is None and not is_quantized(weight):
            return weight
        result = jnp.dtype(dtype) if is_quantized(weight) else weight.dtype
        return jax.lax.map(lambda layer: _merged(*layer).astype(result), (weight, own))

    return map_kernels(kernel, base)


def _merged(weight: Weight, factors: Factors | None) -> Float[Array, "I O"]:
    kernel = dequantize(weight, jnp.dtype("float32"))
    if factors is None:
        return kernel
    # The highest precision: a TPU would otherwise multiply float32 in passes of bfloat16.
    merged = kernel + factors.scale * jnp.dot(factors.a, factors.b, precision="highest")
    if factors.magnitude is None:
        return merged
    return merged * rescaling(kernel, factors.replace(b=factors.b * factors.scale))[None]


def stack_adapters(adapters: Sequence[PyTree]) -> PyTree:
    """Several adapters of one base as one tree: row b of a batch is given adapter number `adapter_ids[b]`.

    They may differ in rank, in targets and in kind: ranks are padded with zeros, and what one lacks is zero, which
    changes nothing.
    """
    by_adapter = [_factors(adapter) for adapter in adapters]
    modules = sorted({module for factors in by_adapter for module in factors})
    leaves: dict[str, Array] = {}
    for module in modules:
        present = [factors[module] for factors in by_adapter if module in factors]
        rank = max(factors.a.shape[-1] for factors in present)
        rescaled = any(factors.magnitude is not None for factors in present)
        empty = jax.tree.map(jnp.zeros_like, present[0]).replace(magnitude=None)
        padded = [_padded(factors.get(module) or empty, rank, rescaled) for factors in by_adapter]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *padded)
        leaves |= {f"{module}/{name}": leaf for name, leaf in vars(stacked).items() if leaf is not None}
    return tree.unflatten(leaves)


def _padded(factors: Factors, rank: int, rescaled: bool) -> Factors:
    missing = rank - factors.a.shape[-1]
    magnitude = factors.magnitude
    if rescaled and magnitude is None:
        magnitude = jnp.zeros((factors.b.shape[0], factors.b.shape[-1]))
    return Factors(
        a=jnp.pad(factors.a, ((0, 0), (0, 0), (0, missing))),
        b=jnp.pad(factors.b, ((0, 0), (0, missing), (0, 0))),
        scale=jnp.asarray(factors.scale),
        magnitude=magnitude,
    )
