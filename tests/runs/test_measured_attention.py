"""Attention is measured where a run begins on GPUs; here with candidates that a CPU has."""

import jax
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention import choice, fastest
from llama_jax.model.attention.choice import Shapes, choose
from llama_jax.model.attention.fastest import Measured
from llama_jax.runs import measured_attention

SHAPES = Shapes(8, 2048, 2048, 8, 4, 128, "bfloat16")


def test_a_candidate_is_timed_on_a_device_and_must_agree(monkeypatch) -> None:
    def passes(name):
        return lambda *arrays: [1.1 * array if name == "triton" else array for array in arrays[:4]]

    monkeypatch.setattr(measured_attention, "_both_passes", passes)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        own = measured_attention.on_a_device(SHAPES._replace(query_length=16, head_size=2))
        found = measured_attention.measured(own, ["triton", "blocked"], {"cudnn": "is away"}, jax.devices()[3])
    assert (own.rows, own.num_heads, own.num_kv_heads) == (2, 4, 2)
    assert list(found.seconds) == ["blocked"] and 0 < found.seconds["blocked"] < 1
    assert found.refused["cudnn"] == "is away"
    assert found.refused["triton"].startswith("failed: the output differs from that of blocked by 0.1")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_implementations_agree_where_they_are_measured(dtype) -> None:
    shapes = Shapes(2, 256, 256, 4, 2, 16, dtype)
    found = measured_attention.measured(shapes, ["triton", "blocked", "xla"], {}, jax.devices()[0])
    assert sorted(found.seconds) == ["blocked", "triton", "xla"] and not found.refused


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """What was asked to be measured, on what is said to be a GPU, with a cache of its own."""
    asked = []

    def measured(shapes, names, refused, device) -> Measured:
        asked.append((shapes, list(names), device))
        return Measured({"blocked": 1e-3, "triton": 2e-3}, refused)

    for module in (choice, measured_attention):
        monkeypatch.setattr(module, "platform", lambda: "gpu")
    monkeypatch.setattr(measured_attention, "measured", measured)
    monkeypatch.setattr(fastest, "_MEASURED", {})
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        yield asked
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_model_is_measured_once_and_later_runs_read_what_was_found(on_a_gpu, monkeypatch) -> None:
    for rows in (8, 4):
        measured_attention.measure_attention(SHAPES._replace(rows=rows))
    assert on_a_gpu == [(SHAPES, ["triton", "blocked"], jax.devices()[0])]
    reason = "measured: blocked 1 ms, triton 2 ms; cudnn is not here, without which nothing can be compiled for it"
    assert str(choose("auto", SHAPES)) == f"blocked ({reason})"

    monkeypatch.setattr(fastest, "_MEASURED", {})  # as in the next run
    measured_attention.measure_attention(SHAPES)
    assert len(on_a_gpu) == 1
    assert str(choose("auto", SHAPES)) == f"blocked ({reason})"
    measured_attention.measure_attention(SHAPES._replace(head_size=64))
    assert len(on_a_gpu) == 2


def test_nothing_is_measured_of_rows_that_nothing_can_be_compared_on(on_a_gpu) -> None:
    measured_attention.measure_attention(SHAPES._replace(query_length=1009, key_length=1009))
    assert not on_a_gpu
    assert choose("auto", SHAPES).name == "triton"
