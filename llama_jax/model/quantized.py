"""Matrices of frozen weights in 8 or 4 bits, which a product turns back one layer at a time.

A quantised kernel is a dictionary of arrays in the place of one array, so that trees stay plain."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, Integer, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.sharding import Axes, constrain, gathered
from llama_jax.model import paths
from llama_jax.model.config import Quantization
from llama_jax.model.transposed import Transposed

StorageType: TypeAlias = Literal["float32", "bfloat16", "int8", "nf4"]
"""How a base is kept: one type for all weights, or the Linears of the blocks quantised and the rest bfloat16."""
Weight: TypeAlias = Any
"""An array `[…, I, O]`, a `Transposed` one, or a quantised one:

    int8  {"int8": int8 [..., I, O], "scale": float32 [..., O]}: code * scale, absmax by output.
    nf4   {"nf4": uint8 [..., I/2, O], "scale": uint8 [..., I/block, O], "step" and "offset": float32
          [..., I/block, groups]}: NF4[code] * (offset + scale * step). A byte holds row i of a block in its low four
          bits and row i + block/2 in its high ones: side by side, not in turn, so that unpacking moves no rows within
          the tiles of a TPU.

NF4 is that of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3): blocks of 64 with one scale each, and the
scales quantised once more to 8 bits in groups of 256. We block along the input, so that a block needs one scale a
column whatever the sharding of the output, and take the groups' scales as an affine map from their least to their
greatest value, where QLoRA subtracts the mean of all and uses an 8-bit float.
"""

BLOCK = 64
GROUP = 256
# Products, not quotients: how a compiler divides by a constant depends on what it fuses the division with.
_PER_127, _PER_255 = np.float32(1 / 127), np.float32(1 / 255)
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Values of the 16 codes (arXiv:2305.14314, appendix E)."""


def is_quantized(weight: Weight) -> bool:
    """Whether the weight is a dictionary of codes and scales."""
    return isinstance(weight, Mapping)


def kernel_shape(weight: Weight) -> tuple[int, ...]:
    """Shape of the matrix that the weight (or the shapes of one) stands for."""
    if not is_quantized(weight):
        return tuple(weight.shape)
    if "int8" in weight:
        return tuple(weight["int8"].shape)
    *before, half, outputs = weight["nf4"].shape
    return (*before, 2 * half, outputs)


def quantize(kernel: Float[Array, "*layers I O"], kind: Quantization) -> dict[str, Array]:
    """The kernel in codes; works layer by layer, in float32.

    Raises:
        UserError: NF4 is asked for and the input size is odd.
    """
    one = {"int8": _int8, "nf4": _nf4}[kind]
    if kernel.ndim == 2:
        return one(kernel)
    return jax.lax.map(lambda layer: quantize(layer, kind), kernel)


def _int8(kernel: Float[Array, "I O"]) -> dict[str, Array]:
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=0) * _PER_127
    codes = jnp.round(kernel / jnp.where(scale > 0, scale, 1)[None])
    return {"int8": codes.astype(jnp.int8), "scale": scale}


def _nf4(kernel: Float[Array, "I O"]) -> dict[str, Array]:
    inputs, outputs = kernel.shape
    if inputs % 2:
        raise UserError(f"nf4: needs an even number of inputs, got {inputs}")
    block = next(size for size in range(min(BLOCK, inputs), 1, -1) if size % 2 == 0 and inputs % size == 0)
    group = next(size for size in range(min(GROUP, outputs), 0, -1) if outputs % size == 0)
    blocks = kernel.astype(jnp.float32).reshape(inputs // block, block, outputs)
    largest = jnp.max(jnp.abs(blocks), axis=1).reshape(inputs // block, outputs // group, group)
    offset = jnp.min(largest, axis=-1)
    step = (jnp.max(largest, axis=-1) - offset) * _PER_255
    scale = (largest - offset[..., None]) / jnp.where(step > 0, step, 1)[..., None]
    scale = jnp.round(scale).astype(jnp.uint8).reshape(inputs // block, outputs)
    # Codes are chosen by the scales as they will be read, which takes part of the scales' error back.
    read = _block_scales(scale, step, offset)[:, None]
    normalized = blocks / jnp.where(read > 0, read, 1)
    limits = (np.array(NF4[1:]) + np.array(NF4[:-1])) / 2
    codes = jnp.zeros(blocks.shape, jnp.uint8)
    for limit in limits:
        codes += normalized > limit.astype(np.float32)
    low, high = jnp.split(codes, 2, axis=1)
    packed = (low | (high << 4)).reshape(inputs // 2, outputs)
    return {"nf4": packed, "scale": scale, "step": step, "offset": offset}


def _block_scales(
    scale: Integer[Array, "blocks O"], step: Float[Array, "blocks groups"], offset: Float[Array, "blocks groups"]
) -> Float[Array, "blocks O"]:
    blocks, groups = step.shape
    codes = scale.astype(jnp.float32).reshape(blocks, groups, -1)
    return (offset[..., None] + codes * step[..., None]).reshape(scale.shape)


def _looked_up(codes: Integer[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.asarray(NF4, jnp.float32)[codes]


def _chosen(codes: Integer[Array, "*shape"]) -> Float[Array, "*shape"]:
    # A tree of choices by the four bits: looking values up is slow on a TPU. (On a CPU it is not, and XLA would make
    # an array of each constant as soon as two kernels share them.)
    values: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        chosen = (codes >> bit) & 1 == 1
        values = [jnp.where(chosen, values[i + 1], values[i]) for i in range(0, len(values), 2)]
    return values[0]


def dequantize(weight: Weight, dtype: jnp.dtype) -> Float[Array, "*layers I O"]:
    """The matrix that the weight stands for, computed in float32 and cast once. A stack of layers comes back whole."""
    if not is_quantized(weight):
        return (weight.kernel if isinstance(weight, Transposed) else weight).astype(dtype)
    if kernel_shape(weight)[:-2]:
        return jax.lax.map(lambda layer: dequantize(layer, dtype), weight)
    if "int8" in weight:
        return (weight["int8"].astype(jnp.float32) * weight["scale"][None]).astype(dtype)
    inputs, outputs = kernel_shape(weight)
    blocks = weight["scale"].shape[0]
    # Everything is a broadcast in this view, so the whole is one loop over the result.
    packed = weight["nf4"].reshape(blocks, 1, inputs // blocks // 2, outputs)
    codes = (packed >> jnp.array([0, 4], jnp.uint8)[None, :, None, None]) & 15
    scales = _block_scales(weight["scale"], weight["step"], weight["offset"])[:, None, None]
    values = jax.lax.platform_dependent(codes, cpu=_looked_up, default=_chosen)
    return (values * scales).astype(dtype).reshape(inputs, outputs)


@jax.custom_vjp
def quantized_matmul(x: Float[Array, "*batch I"], weight: Weight) -> Float[Array, "*batch O"]:
    """The product with a quantised weight, in the type of `x`. The weight gets no gradient, and the backward pass turns
    the codes back once more: kept for it, the matrices of all layers would be the whole model unquantised."""
    if "int8" in weight:
        # The scales belong to outputs, so the codes multiply as they are: whole numbers that bfloat16 holds exactly.
        product = jnp.dot(x, weight["int8"].astype(x.dtype))
        return (product.astype(jnp.float32) * _by_output(weight["scale"], product)).astype(x.dtype)
    return jnp.dot(x, dequantize(weight, x.dtype))


def _by_output(scale: Float[Array, "O"], like: Float[Array, "*batch O"]) -> Float[Array, "*ones O"]:
    return jnp.expand_dims(scale, tuple(range(like.ndim - 1)))


def _forward(x: Float[Array, "*batch I"], weight: Weight) -> tuple[Array, Weight]:
    return quantized_matmul(x, weight), weight


def _backward(weight: Weight, gradient: Float[Array, "*batch O"]) -> tuple[Array, None]:
    if "int8" in weight:
        scaled = (gradient.astype(jnp.float32) * _by_output(weight["scale"], gradient)).astype(gradient.dtype)
        return jnp.dot(scaled, weight["int8"].astype(gradient.dtype).T), None
    return jnp.dot(gradient, dequantize(weight, gradient.dtype).T), None


quantized_matmul.defvjp(_forward, _backward)


def gathered_weight(weight: Weight, axes: tuple[str, str], dtype: jnp.dtype) -> Weight:
    """A weight as it enters a product, see `core.sharding.gathered`; of a quantised one the codes are gathered."""
    if isinstance(weight, Transposed):
        return weight
    if not is_quantized(weight):
        return gathered(weight, axes, dtype)
    inputs, outputs = (None if axis == "embed" else axis for axis in axes)
    stored, used = _parts_axes(weight, axes), _parts_axes(weight, (inputs, outputs))
    return {name: constrain(constrain(part, stored[name]), used[name]) for name, part in weight.items()}


def _parts_axes(weight: Weight, axes: tuple[str | None, str | None]) -> dict[str, Axes]:
    """Logical axes of the arrays of one layer's quantised kernel."""
    if "int8" in weight:
        return {"int8": axes, "scale": axes[1:]}
    outputs = "block_scales" if axes[0] == "embed" else axes[1]
    return {"nf4": axes, "scale": (None, outputs), "step": (None, None), "offset": (None, None)}


def _kernels(params: PyTree) -> tuple[dict[str, Weight], dict[str, Any]]:
    """The kernels of the Linears in the blocks by path, and all other leaves by path."""
    kernels: dict[str, Any] = {}
    rest = {}
    for path, leaf in tree.flatten(params).items():
        kernel, part = paths.split_kernel(path) or ("", "")
        if not kernel:
            rest[path] = leaf
        elif part:
            kernels.setdefault(kernel, {})[part] = leaf
        else:
            kernels[path] = leaf
    return kernels, rest


def block_kernels(params: PyTree) -> dict[str, Weight]:
    """The kernels of the Linears in the blocks, quantised or not, by path (scanned layout)."""
    return _kernels(params)[0]


def map_kernels(function: Callable[[str, Weight], Weight], params: PyTree) -> PyTree:
    """The tree with each kernel of the Linears in the blocks, given with its path, replaced (scanned layout)."""
    kernels, rest = _kernels(params)
    return tree.unflatten(rest | {path: function(path, kernel) for path, kernel in kernels.items()})


def store_as(params: PyTree, storage: StorageType) -> PyTree:
    """The parameters of a base in another storage type: `int8` and `nf4` quantise the kernels of the Linears in the
    blocks and keep everything else in bfloat16. Works on any part of the tree; traced, or not."""
    if storage in ("int8", "nf4"):
        kind: Any = storage

        def stored(weight: Weight) -> Weight:
            if not is_quantized(weight):
                return quantize(weight, kind)
            if kind in weight:
                return weight
            return jax.lax.map(lambda layer: quantize(dequantize(layer, jnp.dtype("float32")), kind), weight)

        kernels, rest = _kernels(params)
        quantized = {path: stored(weight) for path, weight in kernels.items()}
        return tree.unflatten(tree.cast(rest, jnp.dtype("bfloat16")) | quantized)
    dtype = jnp.dtype(storage)
    return tree.cast(map_kernels(lambda _, weight: dequantize(weight, dtype), params), dtype)


def computed_type(path: str, stored: jnp.dtype, dtype: jnp.dtype) -> jnp.dtype:
    """The type in which a parameter enters computation in `dtype`. Quantised kernels and adapters stay as they are:
    what is float32 in them is small, and needs to be."""
    kept = paths.is_adapter(path) or paths.is_quantized(path) or not jnp.issubdtype(stored, jnp.floating)
    return stored if kept else dtype


def cast_plain(params: PyTree, dtype: jnp.dtype) -> PyTree:
    """The parameters in the types in which they enter computation in `dtype`, see `computed_type`."""
    leaves = tree.flatten(params).items()
    return tree.unflatten({path: leaf.astype(computed_type(path, leaf.dtype, dtype)) for path, leaf in leaves})


def stored_axes(axes: PyTree, params: PyTree) -> PyTree:
    """Logical axes of each array of stored parameters (or of shapes of them), from those of the model."""
    plain = tree.flatten(axes)
    leaves = {path: plain[path] for path in tree.flatten(params) if path in plain}
    for path, weight in block_kernels(params).items():
        if is_quantized(weight):
            layers, *kernel = plain[path]
            for name, parts in _parts_axes(weight, (kernel[0], kernel[1])).items():
                leaves[f"{path}/{name}"] = PartitionSpec(layers, *parts)
    return tree.unflatten(leaves)
