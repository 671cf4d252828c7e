"""Attention on GPUs as far as it can be seen without one: what is chosen by measurement, what cuDNN is told of packed
rows, and the blocks of Triton's kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention import choice, fastest, kernels
from llama_jax.model.attention import cudnn as of_cudnn
from llama_jax.model.attention.choice import Shapes, choose
from llama_jax.model.attention.cudnn import documents, most_documents
from llama_jax.model.attention.fastest import Measured
from llama_jax.model.attention.kernels import triton_blocks
from llama_jax.model.attention.sequence import SegmentIds

SHAPES = Shapes(8, 2048, 2048, 8, 4, 128, "bfloat16")
KIB = 1024


def raising(message: str):
    def measure() -> float:
        raise RuntimeError(message)

    return measure


def test_the_fastest_comes_first_and_what_fails_says_why() -> None:
    candidates = {"slow": lambda: 3e-3, "broken": raising("no such kernel\nstack"), "fast": lambda: 1e-3}
    found = fastest.fastest(candidates, {"absent": "is not installed"})
    assert list(found.seconds) == ["fast", "slow"]
    assert str(found) == "fast 1 ms, slow 3 ms; absent is not installed; broken failed: no such kernel"


@pytest.fixture
def measured_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    monkeypatch.setattr(fastest, "_MEASURED", {})
    monkeypatch.setattr(choice, "is_there", lambda: True)
    monkeypatch.setattr(choice, "_capability", lambda: (9, 0))
    fastest.remember(SHAPES.kind, Measured({"cudnn": 1e-3, "triton": 2e-3, "blocked": 9e-3}, {}))


TIMES = "measured: cudnn 1 ms, triton 2 ms, blocked 9 ms"


@pytest.mark.parametrize(
    ("shapes", "chosen"),
    [
        (SHAPES, f"cudnn ({TIMES})"),
        # Also of other rows, as of an evaluation.
        (SHAPES._replace(rows=2, query_length=512, key_length=512), f"cudnn ({TIMES})"),
        (SHAPES._replace(query_length=1000, key_length=1000), f"blocked ({TIMES}; cudnn needs rows in multiples of 16 "
         "tokens, got 1000; triton needs rows in multiples of 16 tokens, got 1000)"),
        # Another model was not measured.
        (SHAPES._replace(head_size=64), "triton"),
    ],
)  # fmt: skip
def test_auto_goes_by_what_was_measured_and_says_the_times(measured_on_a_gpu, shapes, chosen) -> None:
    assert str(choose("auto", shapes)) == chosen


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        (SHAPES._replace(dtype="float32"), "needs bfloat16, got float32"),
        (SHAPES._replace(head_size=84), "needs heads of at most 256, a multiple of 8, got 84"),
        (
            SHAPES._replace(prefixes=True),
            "lets a query see one document alone, and completions here share their prompt",
        ),
        (SHAPES._replace(key_length=4096), "needs whole rows, got 2048 queries for 4096 keys"),
    ],
)  # fmt: skip
def test_cudnn_says_what_it_does_not_take(measured_on_a_gpu, shapes, problem) -> None:
    with pytest.raises(UserError) as raised:
        choose("cudnn", shapes)
    assert str(raised.value) == f"compute.attention: cudnn {problem}"


def test_cudnn_says_which_gpus_it_packs_rows_on(measured_on_a_gpu, monkeypatch) -> None:
    monkeypatch.setattr(choice, "_capability", lambda: (8, 9))
    with pytest.raises(UserError, match=r"cudnn needs compute capability 9\.0 for packed rows, got 8\.9"):
        choose("cudnn", SHAPES)


def test_cudnn_is_told_where_documents_begin_and_how_long_they_are() -> None:
    ids = np.array([[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]])
    starts, lengths, few = jax.jit(documents, static_argnums=1)(ids, 4)
    np.testing.assert_array_equal(starts, [[0, 3, 4, 6], [0, -1, -1, -1]])
    np.testing.assert_array_equal(lengths, [[3, 1, 2, 2], [8, -1, -1, -1]])
    assert few and not jax.jit(documents, static_argnums=1)(ids, 3)[2]
    assert (most_documents(4096), most_documents(64)) == (32, 2)


@pytest.mark.parametrize(("ids", "factor"), [([1, 1, 2, 2], 2.0), ([1, 2, 3, 3], 100.0)])
def test_rows_of_few_documents_are_cudnns_and_others_tritons(monkeypatch, ids, factor) -> None:
    def length(told) -> jax.Array:
        return told[1][0, 0].astype(jnp.float32)

    monkeypatch.setattr(of_cudnn, "_called_forward", lambda told, query, *_: (length(told) * query, jnp.zeros(3)))
    monkeypatch.setattr(
        of_cudnn, "_called_backward", lambda told, query, key, value, *rest: (length(told) * rest[-1], key, value)
    )
    monkeypatch.setattr(of_cudnn, "grouped_triton", lambda query, key, value, segments: 100 * query + 0 * (key + value))
    array = jnp.ones((1, 4, 1, 1))

    @jax.jit
    def both(array, ids):
        mixed, pullback = jax.vjp(lambda query: of_cudnn.cudnn(query, array, array, SegmentIds(ids, ids)), array)
        return mixed, pullback(array)[0]

    for found in both(array, jnp.array([ids])):
        np.testing.assert_array_equal(found, factor * array)


H100, A100, L4 = 227 * KIB, 163 * KIB, 99 * KIB


@pytest.mark.parametrize(
    ("head_size", "dtype", "shared_memory", "blocks"),
    [
        (64, "bfloat16", H100, (128, 64, 64)),
        (64, "bfloat16", L4, (128, 64, 64)),
        (128, "bfloat16", H100, (128, 128, 64)),
        (128, "bfloat16", A100, (128, 128, 64)),
        (128, "bfloat16", L4, (128, 64, 32)),
        (80, "bfloat16", L4, (128, 64, 32)),
        (256, "bfloat16", H100, (64, 64, 32)),
        (256, "bfloat16", L4, (64, 32, 32)),
        (128, "float32", H100, (128, 64, 64)),
        (128, "float32", L4, (64, 32, 32)),
        (256, "float32", L4, (16, 16, 16)),
    ],
)
def test_blocks_are_as_large_as_the_chip_allows(head_size, dtype, shared_memory, blocks) -> None:
    assert triton_blocks(4096, head_size, jnp.dtype(dtype), shared_memory) == blocks


@pytest.mark.parametrize(("length", "blocks"), [(192, (64, 64, 64)), (96, (32, 32, 32)), (48, (16, 16, 16))])
def test_blocks_divide_the_rows(length, blocks) -> None:
    assert triton_blocks(length, 64, jnp.bfloat16, H100) == blocks


def test_a_gpu_that_is_not_known_is_taken_for_one_with_the_least_shared_memory() -> None:
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert kernels._shared_memory() == L4
