"""Attention and its backward pass compiled for chips that are not there: the compilers take the kernels as they are
called, in the memory of a chip, and the devices of a mesh exchange what they should."""

import functools
import importlib.util
import itertools
import re
from importlib import resources

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention import choice, cudnn
from llama_jax.model.attention.choice import attention
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.planning.compiled.collectives import collectives
from llama_jax.planning.topology import absent_devices, compile_without_devices

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPU needs libtpu, which has a wheel for Linux on x86_64 only (the extra 'plan')",
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="compiling for GPU needs JAX's CUDA plugin, which has a wheel for Linux only (the extra 'plan-gpu')",
)

CALLS = {"splash": 'custom_call_target="tpu_custom_call"', "triton": 'custom_call_target="__gpu$xla.gpu.triton"'}
WHOLE = MeshConfig(fsdp=4, tensor=2)
SPLIT = MeshConfig(fsdp=2, sequence=2, tensor=2)
ROWS, LENGTH, HEADS, KV_HEADS = 4, 2048, 8, 4


@functools.cache
def compiled_for(topology: str, mesh: MeshConfig, implementation: str, head_size: int, dtype) -> jax.stages.Compiled:
    return compiled(absent_devices(topology), mesh, implementation, head_size, dtype)


def compiled(devices, mesh: MeshConfig, implementation: str, head_size: int, dtype, policy=None) -> jax.stages.Compiled:
    """Gradients of query, key and value of packed rows.

    Args:
        policy: what is kept for the backward pass, all else is made again; None: all that it needs.
    """
    mesh_in_use = make_mesh(mesh, devices=devices)

    def shape(axes, *sizes, dtype=dtype):
        place = jax.sharding.NamedSharding(mesh_in_use, sharding.mesh_axes(axes, mesh_in_use))
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def loss(query, key, value, ids):
        def attend(*arrays):
            return attention(*arrays, query_segments=ids, key_segments=ids, implementation=implementation)

        attend = attend if policy is None else jax.checkpoint(attend, policy=policy)
        mixed = attend(query, key, value)
        return jnp.sum(mixed.astype(jnp.float32) ** 2)

    query = shape(("batch", "length", "heads", None), ROWS, LENGTH, HEADS, head_size)
    key = shape(("batch", "length", "kv_heads", None), ROWS, LENGTH, KV_HEADS, head_size)
    ids = shape(("batch", "length"), ROWS, LENGTH, dtype=jnp.int32)
    with jax.set_mesh(mesh_in_use):
        return compile_without_devices(jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, key, key, ids))


def shapes_sent(program: jax.stages.Compiled, kind: str) -> list[tuple[str, int]]:
    """Type and bytes of each exchange of a kind, documents left out."""
    found = [each for each in collectives(program.as_text()) if each.kind == kind and each.dtypes != ("s32",)]
    return sorted((each.dtypes[0], each.bytes) for each in found)


SCORES = 4 * ROWS // 4 * HEADS // 2 * LENGTH**2
"""Bytes of all scores that a device would have, in float32."""


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh", "head_size", "dtype"),
    [
        ("v5e:2x4", WHOLE, 128, "bfloat16"),
        pytest.param("v5e:2x4", SPLIT, 128, "bfloat16", marks=pytest.mark.slow),
        pytest.param("v5e:2x4", WHOLE, 64, "float32", marks=pytest.mark.slow),
        pytest.param("v4:2x2x2", SPLIT, 256, "float32", marks=pytest.mark.slow),
        pytest.param("v6e:2x4", WHOLE, 80, "bfloat16", marks=pytest.mark.slow),
        pytest.param("v5p:2x2x2", WHOLE, 32, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_splash_compiles_for_tpus(topology, mesh, head_size, dtype) -> None:
    program = compiled_for(topology, mesh, "splash", head_size, dtype)
    forward, by_query, by_key_and_value = 1, 1, 1
    assert program.as_text().count(CALLS["splash"]) == forward + by_query + by_key_and_value
    assert program.memory_analysis().temp_size_in_bytes < SCORES / 4


@needs_cuda_plugin
@pytest.mark.parametrize(
    ("mesh", "head_size", "dtype"),
    [
        (WHOLE, 128, "bfloat16"),
        pytest.param(SPLIT, 128, "bfloat16", marks=pytest.mark.slow),
        pytest.param(WHOLE, 80, "float32", marks=pytest.mark.slow),
    ],
)
def test_triton_compiles_for_gpus(mesh, head_size, dtype) -> None:
    program = compiled_for("h100:1x8", mesh, "triton", head_size, dtype)
    forward, mean, backward = 1, 1, 1
    assert program.as_text().count(CALLS["triton"]) == forward + mean + backward
    assert program.memory_analysis().temp_size_in_bytes < SCORES


@needs_cuda_plugin
@pytest.mark.parametrize(
    ("head_size", "dtype"),
    [
        pytest.param(*each, marks=[pytest.mark.slow] * (each != (256, "float32")))
        for each in itertools.product([128, 256], ["bfloat16", "float32"])
    ],
)
@pytest.mark.slow
def test_triton_fits_the_shared_memory_of_small_gpus(head_size, dtype) -> None:
    absent_devices("h100:1x1")  # loads the plugin
    target = resources.files("llama_jax.planning").joinpath("h100.txtpb").read_text()
    # Compute capability 8.9 (L4, RTX 4090): 100 KB an SM, of which a block gets 99 (CUDA C++ Programming Guide).
    for name, value in (("major", 8), ("minor", 9), ("memory_per_block_optin", 101376), ("memory_per_core", 102400)):
        target = re.sub(rf"{name}: \d+", f"{name}: {value}", target)
    target = target.replace("NVIDIA H100 80GB HBM3", "NVIDIA L4")
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target)
    program = compiled(topology.devices, MeshConfig(), "triton", head_size, dtype)
    assert CALLS["triton"] in program.as_text()


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_cudnn_is_called_once_in_each_pass_beside_what_it_leaves_to_triton(monkeypatch, devices) -> None:
    """The call alone: without cuDNN nothing looks into it."""
    monkeypatch.setattr(cudnn.library, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(cudnn.library, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn.library, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(choice, "is_there", lambda: True)
    monkeypatch.setattr(choice, "_capability", lambda: (9, 0))
    kept = jax.checkpoint_policies.save_only_these_names(choice.CHECKPOINT_NAME)
    program = compiled(absent_devices(f"h100:1x{devices}"), MeshConfig(fsdp=devices), "cudnn", 128, "bfloat16", kept)
    text = program.as_text()
    assert text.count('custom_call_target="__cudnn$fmhaSoftmax"') == 1
    assert text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"') == 1
    assert text.count(" conditional(") == 2
    # In one of them a forward pass, in the other one more, the mean and the backward pass.
    assert text.count(CALLS["triton"]) == 1 + 3


@pytest.mark.parametrize(
    ("topology", "dtype"),
    [
        pytest.param("v5e:2x4", "bfloat16", marks=needs_libtpu),
        pytest.param("h100:1x8", "float32", marks=[needs_cuda_plugin, pytest.mark.slow]),
    ],
)
def test_blocks_in_plain_jax_hold_few_scores_anywhere(topology, dtype) -> None:
    program = compiled_for(topology, SPLIT, "blocked", 128, dtype)
    assert program.memory_analysis().temp_size_in_bytes < SCORES


@needs_libtpu
@pytest.mark.slow
def test_devices_that_split_rows_gather_keys_and_exchange_queries_in_bfloat16() -> None:
    program = compiled_for("v5e:2x4", SPLIT, "splash", 128, "bfloat16")
    rows = 2 * ROWS // 2 * LENGTH * 128
    key, query = rows * KV_HEADS // 2, rows * HEADS // 2
    assert shapes_sent(program, "all-gather") == [("bf16", key)] * 2
    assert shapes_sent(program, "reduce-scatter") == [("bf16", key)] * 2
    # Two pieces a device there and back, of the queries and of their gradients. A device has half of a row.
    assert shapes_sent(program, "collective-permute") == [("bf16", query / 4)] * 8
    assert not shapes_sent(program, "all-reduce")


@needs_cuda_plugin
@pytest.mark.slow
def test_devices_that_split_rows_exchange_them_for_heads_where_the_kernel_needs_whole_rows() -> None:
    program = compiled_for("h100:1x8", SPLIT, "triton", 128, "bfloat16")
    rows = 2 * ROWS // 2 * LENGTH // 2 * 128
    key, query = rows * KV_HEADS // 2, rows * HEADS // 2
    # Queries, keys, values and what is mixed, and the gradients of all these.
    assert shapes_sent(program, "all-to-all") == sorted([("bf16", key), ("bf16", query)] * 4)
    assert not shapes_sent(program, "all-gather")


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "attention"])
@pytest.mark.parametrize(
    ("implementation", "topology"),
    [
        pytest.param("splash", "v5e:2x4", marks=needs_libtpu),
        pytest.param("triton", "h100:1x8", marks=needs_cuda_plugin),
    ],
)
def test_in_a_scanned_layer_a_policy_keeps_what_the_kernel_made(implementation, topology, remat) -> None:
    config = LlamaConfig(256, 256, 256, 2, num_heads=4, num_kv_heads=2, head_size=64)
    model = language_model(config, ComputeConfig(dtype="bfloat16", remat=remat, attention=implementation))
    mesh = make_mesh(WHOLE, devices=absent_devices(topology))
    places = sharding.shardings_of(mesh, model.shapes(), model.axes)
    params = sharding.with_shardings(model.shapes(), places)
    ids = jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=sharding.row_sharding(mesh))
    with jax.set_mesh(mesh):

        def loss(params, ids):
            return jnp.sum(model.hidden(params, ids, ids, ids).astype(jnp.float32))

        program = compile_without_devices(jax.jit(jax.grad(loss)).lower(params, ids))
    forward, again, backward = 1, remat == "full", 2
    assert program.as_text().count(CALLS[implementation]) == forward + again + backward
