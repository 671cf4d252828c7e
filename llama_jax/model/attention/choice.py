"""Causal attention over packed rows: one function, several implementations chosen by name.

All take grouped queries and segment ids, never let a query see another segment, and work where the mesh in use splits
rows (context parallelism, see `attention_sequence`)."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Float, Int
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import platform
from llama_jax.model.attention.blocks import BLOCK, MASKED, block_size, blocked
from llama_jax.model.attention.cudnn import (
    CUDNN_CAPABILITY,
    CUDNN_HEAD_MULTIPLE,
    CUDNN_LARGEST_HEAD,
    cudnn,
    is_there,
)
from llama_jax.model.attention.fastest import Kind, remembered
from llama_jax.model.attention.kernels import (
    SPLASH_MULTIPLE,
    TRITON_HEAD_BYTES,
    TRITON_MULTIPLE,
    head_bytes,
    splash,
    splash_block,
    triton,
)
from llama_jax.model.attention.sequence import (
    CHECKPOINT_NAME,
    SegmentIds,
    Segments,
    by_device,
    length_spec,
    piece_count,
    query_positions,
    seen,
)
from llama_jax.model.config import ComputeConfig, LlamaConfig

Implementation = Literal["xla", "blocked", "splash", "triton", "cudnn"]


class Shapes(NamedTuple):
    """What decides, with the mesh in use, which implementations can run."""

    rows: int
    query_length: int
    key_length: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: str
    prefixes: bool = False
    """Queries see a second document beside their own."""

    @staticmethod
    def of_whole_rows(config: LlamaConfig, compute: ComputeConfig, rows: int, length: int) -> "Shapes":
        """Those of the training of a model on a (micro)batch."""
        heads = (config.num_heads, config.num_kv_heads, config.head_size)
        return Shapes(rows, length, length, *heads, compute.dtype)

    @property
    def kind(self) -> Kind:
        """What measurements are kept by."""
        return Kind(self.num_heads, self.num_kv_heads, self.head_size, self.dtype)


class Choice(NamedTuple):
    """An implementation, and why it was chosen, or is not the platform's fastest (empty where it is, or where it was
    asked for)."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def choose(implementation: str, shapes: Shapes) -> Choice:
    """The implementation that will run under the mesh in use.

    `auto` takes the fastest of the platform where it can run: `splash` on TPU; on GPU what was measured to be
    (`fastest.remember`), `triton` where nothing was. Then `blocked`, then `xla`, which forms all scores at once.

    Raises:
        UserError: an implementation asked for by name cannot run; the message says why.
    """
    if implementation != "auto":
        if problem := problem_of(implementation, shapes):
            raise UserError(f"compute.attention: {implementation} {problem}")
        return Choice(implementation, "")
    wanted, reasons, drawback = _WANTED[platform()], [], _drawback
    if platform() == "gpu" and (measured := remembered(shapes.kind)):
        wanted, reasons, drawback = tuple(measured.seconds), [f"measured: {measured}"], lambda *_: ""
    for name in wanted:
        problem = problem_of(name, shapes) or drawback(name, shapes)
        if not problem:
            return Choice(name, "; ".join(reasons))
        reasons.append(f"{name} {problem}")
    return Choice("xla", "; ".join(reasons))


def problem_of(name: str, shapes: Shapes) -> str:
    """Why an implementation cannot run under the mesh in use, in words that follow its name; nothing where it can."""
    return _PROBLEMS[name](shapes)


_WANTED: Mapping[str, tuple[str, ...]] = {
    "tpu": ("splash", "blocked"),
    "gpu": ("triton", "blocked"),
    "cpu": ("blocked",),
}
"""What `auto` tries on each platform before `xla`, which runs everywhere."""


def _drawback(name: str, shapes: Shapes) -> str:
    """Why `auto` does without an implementation that could run, in words that follow its name."""
    if name == "blocked" and shapes.query_length <= BLOCK:
        return f"gains nothing in rows of one block of {BLOCK} tokens"
    if name == "triton" and shapes.dtype == "float32":
        return "makes float32 products without tensor cores"
    return ""


def _unseen_prefixes(shapes: Shapes) -> str:
    """What a kernel that compares one document with another cannot do, in words that follow its name."""
    return "lets a query see one document alone, and completions here share their prompt" if shapes.prefixes else ""


def _indivisible(shapes: Shapes) -> str:
    """What the devices of the mesh in use cannot share out, in words that follow a name; nothing where they can."""
    if shapes.query_length != shapes.key_length:
        return f"needs whole rows, got {shapes.query_length} queries for {shapes.key_length} keys"
    counts = (("rows", shapes.rows, "batch"), ("key/value heads", shapes.num_kv_heads, "kv_heads"))
    for what, count, axis in counts:
        if count % (parts := sharding.size_of(axis)):
            return f"needs {what} that {parts} devices divide, got {count}"
    if shapes.query_length % piece_count():
        return f"needs rows in multiples of {piece_count()} tokens, got {shapes.query_length}"
    return ""


def _problem_of_blocked(shapes: Shapes) -> str:
    if problem := _indivisible(shapes):
        return problem
    if block_size(shapes.query_length) is None:
        return f"needs rows in blocks of up to {BLOCK} tokens, which do not divide {shapes.query_length}"
    return ""


def _problem_of_splash(shapes: Shapes) -> str:
    if platform() == "gpu":
        return "is a kernel for TPUs, and this is a GPU"
    if problem := _unseen_prefixes(shapes) or _indivisible(shapes):
        return problem
    if splash_block(shapes.query_length) is None:
        return f"needs rows in multiples of {SPLASH_MULTIPLE * piece_count()} tokens, got {shapes.query_length}"
    return ""


def _problem_of_triton(shapes: Shapes) -> str:
    if platform() == "tpu":
        return "is a kernel for GPUs, and this is a TPU"
    if problem := _unseen_prefixes(shapes) or _indivisible(shapes):
        return problem
    if shapes.query_length % TRITON_MULTIPLE:
        return f"needs rows in multiples of {TRITON_MULTIPLE} tokens, got {shapes.query_length}"
    if head_bytes(shapes.head_size, shapes.dtype) > TRITON_HEAD_BYTES:
        return f"needs heads of at most {TRITON_HEAD_BYTES} bytes, got {shapes.head_size} numbers in {shapes.dtype}"
    return _indivisible_heads(shapes)


def _problem_of_cudnn(shapes: Shapes) -> str:
    if platform() != "gpu":
        return "is a library for NVIDIA's GPUs"
    if not is_there():
        return "is not here, without which nothing can be compiled for it"
    if problem := _unseen_prefixes(shapes) or _indivisible(shapes) or _indivisible_heads(shapes):
        return problem
    if shapes.dtype != "bfloat16":
        return f"needs bfloat16, got {shapes.dtype}"
    if shapes.head_size % CUDNN_HEAD_MULTIPLE or shapes.head_size > CUDNN_LARGEST_HEAD:
        return (
            f"needs heads of at most {CUDNN_LARGEST_HEAD}, a multiple of {CUDNN_HEAD_MULTIPLE}, got {shapes.head_size}"
        )
    if (found := _capability()) < CUDNN_CAPABILITY:
        needed, got = (".".join(map(str, version)) for version in (CUDNN_CAPABILITY, found))
        return f"needs compute capability {needed} for packed rows, got {got}"
    # What it does not take is left to Triton.
    return _problem_of_triton(shapes)


def _capability() -> tuple[int, ...]:
    """Compute capability of the GPUs of this process."""
    return tuple(map(int, str(jax.local_devices()[0].compute_capability).split(".")))


def _indivisible_heads(shapes: Shapes) -> str:
    """What a kernel for whole rows cannot do where rows are split, see `by_heads`."""
    heads, parts = shapes.num_heads // sharding.size_of("heads"), sharding.size_of("length")
    if heads % parts:
        return f"needs heads that the {parts} devices of mesh.sequence divide, got {heads} on each"
    return ""


_PROBLEMS: Mapping[str, Callable[[Shapes], str]] = {
    "xla": lambda _: "",
    "blocked": _problem_of_blocked,
    "splash": _problem_of_splash,
    "triton": _problem_of_triton,
    "cudnn": _problem_of_cudnn,
}
"""Why an implementation cannot run, in words that follow its name; nothing where it can."""


@jax.named_scope("scaled_dot_product_attention")
def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    *,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    query_prefixes: Int[Array, "B T"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax(Q K^T / sqrt(H)) V (Vaswani et al. 2017, arXiv:1706.03762, equation 1) under the causal mask.

    Args:
        query_segments: document of each query; with `key_segments`, only keys of the same document are seen. None: one
            document.
        query_prefixes: a second document that each query sees, its own where there is none.
        implementation: `auto`, or a name.

    Returns:
        The mix of values in the type of the query; scores and softmax are float32. Query head n reads key/value head
        n // (N/K). Named `CHECKPOINT_NAME` for `jax.checkpoint`.

    Raises:
        UserError: an implementation asked for by name cannot run.
    """
    B, T, N, H = query_BTNH.shape
    S, K = key_BSKH.shape[1:3]
    segments = None
    if query_segments is not None and key_segments is not None:
        segments = SegmentIds(query_segments, key_segments, query_prefixes)
    arrays = (query_BTNH, key_BSKH, value_BSKH, segments)
    shapes = Shapes(B, T, S, N, K, H, query_BTNH.dtype.name, query_prefixes is not None)
    chosen = choose(implementation, shapes).name
    if chosen != "xla":
        return _FUNCTIONS[chosen](*arrays)
    if piece_count() == 1 or _indivisible(shapes):
        mixed = _xla(*arrays, jnp.arange(T)[None])
    else:
        positions = jnp.asarray(query_positions(T))[None]
        mixed = by_device(_xla, *arrays, (positions,), (length_spec(1),))
    return checkpoint_name(mixed, CHECKPOINT_NAME)


_FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    "splash": splash,
    "triton": triton,
    "cudnn": cudnn,
    "blocked": blocked,
}
"""`function(query, key, value, segments)` of each implementation but `xla`, which is for parts of rows too."""


def _xla(
    query_BTNH: Float[Array, "B T N H"],
    key_BSKH: Float[Array, "B S K H"],
    value_BSKH: Float[Array, "B S K H"],
    segments: Segments,
    positions: Int[Array, "1 T"],
) -> Float[Array, "B T N H"]:
    """All scores at once, of queries at the given positions among the keys."""
    B, T, N, H = query_BTNH.shape
    S, K = key_BSKH.shape[1:3]
    G = N // K
    # One batch of plain matrix products for each row and key/value head, the queries of its group below each other:
    # contractions over more axes than that are several times slower on CPU, and no faster elsewhere.
    query = jnp.moveaxis(query_BTNH.reshape(B, T, K, G, H), 1, 3).reshape(B, K, G * T, H)
    key, value = (jnp.moveaxis(array, 1, 2) for array in (key_BSKH, value_BSKH))
    scores = jnp.einsum("BKTH,BKSH->BKTS", query, key, preferred_element_type=jnp.float32) * H**-0.5
    visible = positions[:, :, None] >= jnp.arange(S)[None, None]
    if segments is not None:
        visible &= seen(*segments)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores.reshape(B, K, G, T, S), MASKED), axis=-1)
    mixed = jnp.einsum("BKTS,BKSH->BKTH", weights.astype(value.dtype).reshape(B, K, G * T, S), value)
    return jnp.moveaxis(mixed.reshape(B, K, G, T, H), 3, 1).reshape(B, T, N, H)
