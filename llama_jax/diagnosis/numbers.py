"""Whether a device computes rightly: each product and kernel of training beside float64, and a small training run
beside the losses that it has on a CPU. What is checked is a function that is passed in, so that a wrong one can be."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, Int
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh, platform
from llama_jax.data.rows.packing import write_segment
from llama_jax.model.attention.choice import Implementation, Shapes, attention, problem_of
from llama_jax.model.config import ComputeConfig, LlamaConfig, RopeScaling
from llama_jax.model.layers import matmul
from llama_jax.model.llama import language_model
from llama_jax.model.quantized import NF4, Quantization, Weight, quantize
from llama_jax.model.rope import rotate, rotation
from llama_jax.objectives.cross_entropy import summed_cross_entropy
from llama_jax.objectives.next_token import next_token
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

TYPES = ("float32", "bfloat16")

_OF_FLOAT32 = {"cpu": 1e-4, "gpu": 0.06, "tpu": 0.25}
"""Largest error that is tolerated of float32, next to the mean size of what is computed. JAX multiplies float32 numbers
of which GPUs keep 11 bits (TensorFloat-32) and TPUs 8, unless it is told to do better."""
_OF_BFLOAT16 = 0.25
"""128 roundings to 8 bits: there are several on the way, and of a hundred thousand errors the worst counts. A kernel
that lets a query see a key too many is off by more than 1."""
_OF_LOSSES = {
    "float32": {"cpu": 1e-4, "gpu": 0.01, "tpu": 0.03},
    "bfloat16": dict.fromkeys(("cpu", "gpu", "tpu"), 0.03),
}
"""The same of losses, which are means of a thousand numbers, next to the losses themselves."""

Exact = Float[np.ndarray, "..."]


class Check(NamedTuple):
    """Something to check."""

    what: str
    error: Callable[[], float]
    """Makes the largest error, next to the root mean square of the exact numbers; of losses, next to the exact loss.
    NaN where a number is none."""
    tolerance: float
    """The largest error that rounding explains."""

    def found(self) -> dict[str, Any]:
        """What comes of it as JSON values: `what`, `error` (None where there is no number), `tolerance`, `ok`."""
        error = self.error()
        is_number = bool(np.isfinite(error))
        ok = is_number and error <= self.tolerance
        return {"what": self.what, "error": error if is_number else None, "tolerance": self.tolerance, "ok": ok}

    def failed(self, why: str) -> dict[str, Any]:
        """The same of a check that ended with an error, with that as `problem`."""
        return {"what": self.what, "error": None, "tolerance": self.tolerance, "ok": False, "problem": why}


def checks(thorough: bool) -> list[Check]:
    """All of them, for the mesh in use; one device is enough.

    Args:
        thorough: on a CPU also the kernels for accelerators, which it interprets in some seconds each.
    """
    found = []
    for dtype in TYPES:
        tolerated = tolerance(dtype)
        of_type = {
            "matmul": partial(product_error, matmul, dtype),
            **{
                f"matmul, {kind} weights": partial(product_error, matmul, dtype, kind)
                for kind in get_args(Quantization)
            },
            **{
                f"attention {name}": partial(attention_error, _named(name), dtype) for name in runnable(dtype, thorough)
            },
            "cross-entropy": partial(cross_entropy_error, summed_cross_entropy, dtype),
        }
        found += [Check(f"{what}, {dtype}", error, tolerated) for what, error in of_type.items()]
        # An angle of 8,191 radians is a float32 with a spacing of 2^-11, on every platform.
        of_angles = 2.0**-8 if dtype == "float32" else tolerated
        found.append(Check(f"rotary positions, {dtype}", partial(rotary_error, rotate, dtype), of_angles))
        error = partial(training_error, training_losses, dtype)
        found.append(Check(f"training, {dtype}", error, _OF_LOSSES[dtype][platform()]))
    return found


def worst(everywhere: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of what the same check found in several processes, what is wrong or else furthest off."""
    return max(everywhere, key=lambda found: (not found["ok"], found["error"] is None, found["error"] or 0.0))


def tolerance(dtype: str) -> float:
    """Of numbers computed in a type on the platform in use."""
    return _OF_BFLOAT16 if dtype == "bfloat16" else _OF_FLOAT32[platform()]


def largest_error(got: Sequence[Array], exact: Sequence[Exact]) -> float:
    """Of several arrays, each next to its own mean size; NaN where a number is none."""
    errors = []
    for ours, right in zip(got, exact, strict=True):
        difference = np.abs(np.asarray(ours, np.float64) - right)
        errors.append(difference.max() / np.sqrt(np.mean(np.square(right))))
    return float(np.max(errors))


def product_error(multiply: Callable[[Array, Any], Array], dtype: str, kind: Quantization | None = None) -> float:
    """Of a product of 128 rows with a matrix of 512 x 256, and its gradient by the rows.

    Args:
        kind: in which the matrix is quantised; None: it is in `dtype`.
    """
    random = np.random.default_rng(0)
    x, cotangent = (_rounded(random.normal(size=shape), dtype) for shape in ((128, 512), (128, 256)))
    kernel = _rounded(random.normal(size=(512, 256)), dtype)
    weight = kernel if kind is None else jax.jit(quantize, static_argnums=1)(kernel.astype(jnp.float32), kind)
    got, back = jax.jit(lambda x, weight: jax.vjp(lambda rows: multiply(rows, weight), x))(x, weight)
    matrix = _doubled(kernel) if kind is None else dequantized(weight)
    exact = (_doubled(x) @ matrix, _doubled(cotangent) @ matrix.T)
    return largest_error((got, back(cotangent)[0]), exact)


def dequantized(weight: Weight) -> Exact:
    """The matrix that codes stand for in float64, by the formulas of `model.quantized.Weight`."""
    parts = {name: np.asarray(part) for name, part in weight.items()}
    if "int8" in parts:
        return parts["int8"].astype(np.float64) * parts["scale"]
    half, outputs = parts["nf4"].shape
    blocks, groups = parts["step"].shape
    packed = parts["nf4"].reshape(blocks, half // blocks, outputs)
    codes = np.concatenate([packed & 15, packed >> 4], axis=1)
    offset, step = (np.repeat(parts[name].astype(np.float64), outputs // groups, 1) for name in ("offset", "step"))
    scales = offset + parts["scale"] * step
    return (np.asarray(NF4)[codes] * scales[:, None]).reshape(2 * half, outputs)


def rotary_error(turn: Callable[[Array, Array, Array], Array], dtype: str) -> float:
    """Of heads of 64 numbers at positions up to 8,191, with Llama 3.1's rescaling."""
    config = LlamaConfig(head_size=64, rope_base=500_000.0, rope_scaling=RopeScaling())
    positions = np.linspace(0, 8191, 256, dtype=np.int32)[None]
    x = _rounded(np.random.default_rng(0).normal(size=(1, 256, 2, 64)), dtype)
    got = jax.jit(lambda x, positions: turn(x, *rotation(config, positions)))(x, positions)
    # The frequencies are arithmetic of Python on every platform; what the device adds is angle, sine and cosine.
    angles = positions[..., None].astype(np.float64) * frequencies(config)
    cosine, sine = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]
    first, second = np.split(_doubled(x), 2, axis=-1)
    exact = np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return largest_error((got,), (exact,))


def frequencies(config: LlamaConfig) -> Exact:
    """Radians a position in float64 (arXiv:2104.09864, equation 15; Llama 3's rescaling, see `RopeScaling`)."""
    found = []
    scaling = config.rope_scaling
    for pair in range(0, config.head_size, 2):
        frequency = config.rope_base ** (-pair / config.head_size)
        if scaling is not None:
            turns = scaling.original_context_length * frequency / (2 * np.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
            frequency *= kept + (1 - kept) / scaling.factor
        found.append(frequency)
    return np.array(found)


_ROWS, _LENGTH, _HEADS, _KV_HEADS, _HEAD = 2, 512, 4, 2, 64


def runnable(dtype: str, thorough: bool) -> list[Implementation]:
    """The implementations of attention that this platform has, without those that a CPU interprets unless asked for."""
    shapes = Shapes(_ROWS, _LENGTH, _LENGTH, _HEADS, _KV_HEADS, _HEAD, dtype)
    left_out = () if thorough or platform() != "cpu" else ("splash", "triton")
    return [name for name in get_args(Implementation) if name not in left_out and not problem_of(name, shapes)]


Attend = Callable[[Array, Array, Array, Array], Array]
"""The mix of values, from queries `[B, T, N, H]`, keys and values `[B, T, K, H]` and segment ids `[B, T]`."""


def _named(name: Implementation) -> Attend:
    def attend(query: Array, key: Array, value: Array, segments: Array) -> Array:
        return attention(query, key, value, query_segments=segments, key_segments=segments, implementation=name)

    return attend


def attention_error(attend: Attend, dtype: str) -> float:
    """Of packed rows of 512 tokens with grouped queries: the mix of values, and its gradients."""
    random = np.random.default_rng(0)
    wide, narrow = (_ROWS, _LENGTH, _HEADS, _HEAD), (_ROWS, _LENGTH, _KV_HEADS, _HEAD)
    query, key, value, cotangent = (
        _rounded(random.normal(size=shape), dtype) for shape in (wide, narrow, narrow, wide)
    )
    # Documents that end within blocks, at their edges, and after one token.
    ends = np.array([[100, 101, 384], [128, 256, 511]])
    segments = 1 + (np.arange(_LENGTH)[None, :, None] >= ends[:, None]).sum(-1).astype(np.int32)

    def mixed(query: Array, key: Array, value: Array, segments: Array, cotangent: Array) -> tuple[Array, ...]:
        made, back = jax.vjp(lambda query, key, value: attend(query, key, value, segments), query, key, value)
        return made, *back(cotangent)

    got = jax.jit(mixed)(query, key, value, segments, cotangent)
    exact = exact_attention(_doubled(query), _doubled(key), _doubled(value), segments, _doubled(cotangent))
    return largest_error(got, exact)


def exact_attention(
    query_BTNH: Exact, key_BSKH: Exact, value_BSKH: Exact, segments: Int[np.ndarray, "B T"], cotangent_BTNH: Exact
) -> tuple[Exact, Exact, Exact, Exact]:
    """Softmax(Q K^T / sqrt(H)) V under the causal mask within documents (arXiv:1706.03762, equation 1), and its
    gradients by queries, keys and values, as in arXiv:2205.14135, appendix B.2."""
    group, scale = query_BTNH.shape[2] // key_BSKH.shape[2], query_BTNH.shape[3] ** -0.5
    query, cotangent = (np.swapaxes(array, 1, 2) for array in (query_BTNH, cotangent_BTNH))
    key, value = (np.repeat(np.swapaxes(array, 1, 2), group, axis=1) for array in (key_BSKH, value_BSKH))
    visible = np.tril(segments[:, :, None] == segments[:, None])[:, None]
    scores = np.where(visible, query @ np.swapaxes(key, 2, 3) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    by_weights = cotangent @ np.swapaxes(value, 2, 3)
    by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdims=True)) * scale

    def of_group(by_head: Exact) -> Exact:
        B, N, S, H = by_head.shape
        return np.swapaxes(by_head.reshape(B, N // group, group, S, H).sum(2), 1, 2)

    by_key, by_value = np.swapaxes(by_scores, 2, 3) @ query, np.swapaxes(weights, 2, 3) @ cotangent
    mixed, by_query = (np.swapaxes(array, 1, 2) for array in (weights @ value, by_scores @ key))
    return mixed, by_query, of_group(by_key), of_group(by_value)


def cross_entropy_error(summed: Callable[..., tuple[Array, Array]], dtype: str) -> float:
    """Of -log p of 2 rows of 64 tokens over a vocabulary of 1,000, and its gradients by head and hidden states."""
    random = np.random.default_rng(0)
    head, hidden = (_rounded(random.normal(size=shape), dtype) for shape in ((64, 1000), (2, 64, 64)))
    targets = random.integers(0, 1000, (2, 64), np.int32)
    weights = random.integers(0, 2, (2, 64)).astype(np.float32)

    def unembed(head: Array, hidden: Array) -> Array:
        return jnp.dot(hidden, head, preferred_element_type=jnp.float32)

    def loss(head: Array, hidden: Array) -> Array:
        return summed(unembed, 0.0, head, hidden, jnp.asarray(targets), jnp.asarray(weights))[0]

    value, (by_head, by_hidden) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(head, hidden)
    matrix, states = _doubled(head), _doubled(hidden)
    logits = states @ matrix
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    is_target = np.arange(1000) == targets[..., None]
    by_logits = weights[..., None] * (np.exp(logprobs) - is_target)
    exact = (
        np.asarray(-(weights * logprobs[is_target].reshape(targets.shape)).sum()),
        np.einsum("BTD,BTV->DV", states, by_logits),
        by_logits @ matrix.T,
    )
    return largest_error((value, by_head, by_hidden), exact)


def _rounded(values: Exact, dtype: str) -> Array:
    return jnp.asarray(values, dtype)


def _doubled(array: Array) -> Exact:
    return np.asarray(array, np.float64)


_STEPS = 6
LOSSES = (6.711217, 4.309815, 2.879116, 1.786261, 1.034920, 0.554591)
"""Of `training_losses("float32")` on an x86-64 with AVX-512; JAX 0.10.2, 0.11.2 and 0.12.0."""


def training_error(losses: Callable[[str], list[float]], dtype: str) -> float:
    """Of the losses of a small run, each next to the one that is recorded."""
    got, exact = np.array(losses(dtype)), np.array(LOSSES)
    return float(np.max(np.abs(got - exact) / exact))


def training_losses(dtype: str) -> list[float]:
    """Losses of the first steps of a model of 0.4 million parameters on 2 rows of 512 tokens, three documents each, on
    the first device of this process; nats per token."""
    model_config = LlamaConfig(
        vocab_size=512, width=128, mlp_width=256, num_layers=2, num_heads=2, num_kv_heads=1, head_size=64
    )
    config = TrainingConfig(
        steps=_STEPS, batch_size=_ROWS, peak_learning_rate=3e-3, warmup_steps=1, schedule="constant", spike_sigma=0.0
    )
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
        model = language_model(model_config, ComputeConfig(dtype=dtype))  # pyright: ignore[reportArgumentType]
        program = make_program(model, next_token(model), config, _LENGTH, seed=0)
        state, frozen = program.init(jax.random.key(0))
        batch = program.place_batch(_text_rows(program.batch), _ROWS)
        losses = []
        for _ in range(_STEPS):
            state, metrics = program.step(state, frozen, batch)
            losses.append(float(metrics["loss"]))
    return losses


def _text_rows(kind: Any) -> dict[str, np.ndarray]:
    """Documents in which each token follows from the one before, by a formula, so that there is something to learn."""
    rows = [kind.empty_row(_LENGTH) for _ in range(_ROWS)]
    for number, row in enumerate(rows):
        begin = 0
        for document, length in enumerate((100, 283, 129), 1):
            ids = np.array([(7 * number + 31 * document + 3 * place) % 251 for place in range(length + 1)], np.int32)
            write_segment(row, begin, document, ids)
            begin += length
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
