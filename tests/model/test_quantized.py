"""Quantised kernels: the codes and bytes of the formats, their error, their products and what stays out of memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted_models import CONFIG, MODEL, base
from jax.sharding import PartitionSpec
from sweeps import some

from llama_jax.core import tree
from llama_jax.core.errors import UserError
from llama_jax.inference.layout import decoding_params
from llama_jax.model import quantized
from llama_jax.model.cache import empty_cache
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model

RANDOM = np.random.default_rng(0)


def kernel(inputs: int, outputs: int, *layers: int) -> np.ndarray:
    return (RANDOM.standard_normal((*layers, inputs, outputs)) * 0.02).astype(np.float32)


def test_int8_rounds_to_a_127th_of_the_largest_of_each_output() -> None:
    weights = kernel(96, 40)
    weights[:, 3] = 0
    stored = quantized.quantize(jnp.asarray(weights), "int8")
    scale = np.abs(weights).max(axis=0) / 127
    np.testing.assert_allclose(stored["scale"], scale, rtol=1e-6)
    error = np.abs(np.asarray(quantized.dequantize(stored, jnp.dtype("float32"))) - weights)
    assert (error <= 0.5001 * scale).all()
    assert np.abs(stored["int8"]).max() == 127


def nf4_in_numpy(stored: dict, block: int, group: int) -> np.ndarray:
    """The matrix of the codes, one element at a time, as the docstring of the format says."""
    packed, scale, step, offset = (np.asarray(stored[name]) for name in ("nf4", "scale", "step", "offset"))
    inputs, outputs = 2 * packed.shape[0], packed.shape[1]
    result = np.zeros((inputs, outputs))
    for row in range(inputs):
        number, within = divmod(row, block)
        half, place = divmod(within, block // 2)
        for column in range(outputs):
            byte = packed[number * block // 2 + place, column]
            code = byte >> 4 if half else byte & 15
            of_group = number, column // group
            of_block = offset[of_group] + scale[number, column] * step[of_group]
            result[row, column] = quantized.NF4[code] * of_block
    return result


@pytest.mark.parametrize(("inputs", "outputs", "block", "group"), [(128, 6, 64, 6), (88, 514, 44, 2), (30, 5, 30, 5)])
def test_nf4_takes_the_nearest_value_of_the_table(inputs, outputs, block, group) -> None:
    """Blocks are the largest even divisor of the inputs up to 64, groups that of the outputs up to 256."""
    group = next(size for size in range(256, 0, -1) if outputs % size == 0) if group == 2 else group
    weights = kernel(inputs, outputs)
    stored = quantized.quantize(jnp.asarray(weights), "nf4")
    assert {name: (leaf.dtype.name, leaf.shape) for name, leaf in stored.items()} == {
        "nf4": ("uint8", (inputs // 2, outputs)),
        "scale": ("uint8", (inputs // block, outputs)),
        "step": ("float32", (inputs // block, outputs // group)),
        "offset": ("float32", (inputs // block, outputs // group)),
    }
    values = np.asarray(quantized.dequantize(stored, jnp.dtype("float32")))
    np.testing.assert_allclose(values, nf4_in_numpy(stored, block, group), rtol=1e-6)
    scales = np.abs(weights.reshape(-1, block, outputs)).max(axis=1)
    read = np.repeat(nf4_scales(stored, group), block, axis=0)
    # The scales are within half a step of 255 between the least and the greatest of their group.
    width = np.ptp(scales.reshape(-1, outputs // group, group), axis=-1).max() / 255
    np.testing.assert_allclose(nf4_scales(stored, group), scales, atol=0.51 * width, rtol=1e-6)
    choices = read[..., None] * np.array(quantized.NF4)
    nearest = np.abs(choices - weights[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(values - weights), nearest, atol=1e-8)


def nf4_scales(stored: dict, group: int) -> np.ndarray:
    step, offset = (np.repeat(np.asarray(stored[name]), group, axis=1) for name in ("step", "offset"))
    return offset + np.asarray(stored["scale"]) * step


@pytest.mark.slow
def test_nf4_error_on_normal_weights() -> None:
    """The root mean square error of NF4 on a normal distribution is 9.1 % of its deviation at blocks of 64 (our own
    figure; bitsandbytes' mean absolute error of 0.0725 deviations at that size agrees with the one here)."""
    weights = kernel(1024, 512)
    values = np.asarray(quantized.dequantize(quantized.quantize(jnp.asarray(weights), "nf4"), jnp.dtype("float32")))
    error = (values - weights) / weights.std()
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(0.092, abs=0.002)
    assert np.mean(np.abs(error)) == pytest.approx(0.0728, abs=0.002)


def test_the_two_ways_to_look_values_up_agree() -> None:
    codes = jnp.arange(16, dtype=jnp.uint8)
    np.testing.assert_array_equal(quantized._looked_up(codes), np.array(quantized.NF4, np.float32))
    np.testing.assert_array_equal(quantized._chosen(codes), np.array(quantized.NF4, np.float32))


def test_special_columns() -> None:
    """Zero stays zero, and a group whose scales are all the same divides by no zero."""
    weights = np.zeros((64, 4), np.float32)
    weights[:, 1:] = np.sign(kernel(64, 1)) * 0.5
    for kind in ("int8", "nf4"):
        values = quantized.dequantize(quantized.quantize(jnp.asarray(weights), kind), jnp.dtype("float32"))
        np.testing.assert_allclose(values, weights, rtol=1e-2 if kind == "nf4" else 1e-6)
    same = np.tile(np.float32([0.5, -0.5]), (64, 2))
    np.testing.assert_allclose(
        quantized.dequantize(quantized.quantize(jnp.asarray(same), "nf4"), jnp.dtype("float32")), same, rtol=1e-6
    )
    with pytest.raises(UserError, match="even number of inputs, got 63"):
        quantized.quantize(jnp.zeros((63, 4)), "nf4")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_layers_are_quantised_one_by_one(kind) -> None:
    weights = jnp.asarray(kernel(64, 8, 3)) * jnp.array([1.0, 10.0, 0.1])[:, None, None]
    stacked = quantized.quantize(weights, kind)
    for layer in range(3):
        alone = quantized.quantize(weights[layer], kind)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), alone, {k: v[layer] for k, v in stacked.items()})
    assert quantized.kernel_shape(stacked) == weights.shape
    np.testing.assert_allclose(
        quantized.dequantize(stacked, jnp.dtype("float32"))[1],
        quantized.dequantize({k: v[1] for k, v in stacked.items()}, jnp.dtype("float32")),
        rtol=3e-7,
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_products_and_gradients_are_those_of_the_matrix(kind) -> None:
    stored = quantized.quantize(jnp.asarray(kernel(128, 48)), kind)
    matrix = quantized.dequantize(stored, jnp.dtype("float32"))
    x = jnp.asarray(RANDOM.standard_normal((2, 5, 128)), jnp.float32)

    def output(x, weight):
        product = quantized.quantized_matmul(x, weight) if isinstance(weight, dict) else x @ weight
        return jnp.sum(jnp.sin(product)), product

    ours, theirs = (jax.jit(jax.grad(output, has_aux=True))(x, weight) for weight in (stored, matrix))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("storage", some(["float32", "bfloat16", "int8", "nf4"], ["int8"]))
@pytest.mark.slow
def test_a_stored_tree_computes_what_its_matrices_compute(storage) -> None:
    params = base()
    stored = jax.jit(quantized.store_as, static_argnums=1)(params, storage)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(stored)}
    parts = {"int8": {"int8", "float32"}, "nf4": {"uint8", "float32"}}.get(storage)
    assert dtypes == ({storage} if parts is None else {"bfloat16"} | parts)
    plain = quantized.store_as(stored, "float32")
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, params)
    tokens = jnp.asarray(RANDOM.integers(0, CONFIG.vocab_size, (2, 12)))
    expected = jax.jit(MODEL.logits)(plain, tokens)
    np.testing.assert_allclose(jax.jit(MODEL.logits)(stored, tokens), expected, atol=2e-5, rtol=0)
    own = decoding_params(MODEL, stored)
    hidden, _ = MODEL.decode(own, tokens, empty_cache(CONFIG, 2, 12, jnp.dtype("float32")), jnp.zeros(2, jnp.int32))
    logits = MODEL.unembed(MODEL.head(own), hidden)[..., : CONFIG.vocab_size]
    np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=0)
    if storage != "float32":
        again = quantized.store_as(stored, storage)
        jax.tree.map(np.testing.assert_array_equal, again, stored)


def test_decoding_in_bfloat16_keeps_scales_in_float32() -> None:
    model = language_model(CONFIG, ComputeConfig(dtype="bfloat16"))
    own = tree.flatten(decoding_params(model, quantized.store_as(base(), "nf4")))
    dtypes = {path.rsplit("/", 1)[-1]: leaf.dtype.name for path, leaf in own.items() if "q_proj" in path}
    assert dtypes == {"nf4": "uint8", "scale": "uint8", "step": "float32", "offset": "float32"}
    assert own["embedding/table"].dtype == jnp.bfloat16


def test_bytes_of_7b_in_nf4_and_int8() -> None:
    """Codes 1/2, scales 1/64, and 8 bytes for each 64 x 256 in the blocks; the rest in two bytes a parameter."""
    model = language_model(SIZES["llama_7b"], ComputeConfig())
    count = model.parameter_count()

    def size(storage: str) -> int:
        shapes = jax.eval_shape(lambda: quantized.store_as(model.init(jax.random.key(0)), storage))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert size("nf4") == blocks * (1 / 2 + 1 / 64 + 8 / (64 * 256)) + 2 * (count - blocks)
    assert size("nf4") / count < 0.575
    assert size("int8") / count < 1.04
    assert size("bfloat16") == 2 * count


def test_every_stored_array_has_axes() -> None:
    for storage in ("bfloat16", "int8", "nf4"):
        shapes = jax.eval_shape(lambda storage=storage: quantized.store_as(MODEL.init(jax.random.key(0)), storage))
        axes = tree.flatten(quantized.stored_axes(MODEL.axes, shapes))
        leaves = tree.flatten(shapes)
        assert axes.keys() == leaves.keys()
        assert all(len(axes[path]) == len(leaf.shape) for path, leaf in leaves.items())
    assert axes["layers/attention/q_proj/kernel/nf4"] == PartitionSpec("layers", "embed", "heads")
    assert axes["layers/attention/q_proj/kernel/scale"] == PartitionSpec("layers", None, "block_scales")
    assert axes["layers/attention/o_proj/kernel/scale"] == PartitionSpec("layers", None, "embed")


@pytest.mark.slow
def test_the_backward_pass_keeps_no_matrix_turned_back() -> None:
    """What a pass keeps for its gradient, under the policy that keeps all: activations, and of kernels the codes."""
    stored = quantized.store_as(base(), "nf4")
    tokens = jnp.ones((1, 8), jnp.int32)

    def loss(table):
        return jnp.sum(MODEL.logits(stored | {"embedding": {"table": table}}, tokens))

    _, backward = jax.vjp(loss, stored["embedding"]["table"].astype(jnp.float32))
    sizes = {quantized.kernel_shape(weight)[1:] for weight in quantized.block_kernels(stored).values()}
    kept = {(leaf.dtype.name, leaf.shape[1:]) for leaf in jax.tree.leaves(backward) if hasattr(leaf, "shape")}
    assert not {("float32", size) for size in sizes} & kept
