"""One step of a small LLaMA compiled for eight TPU chips that are not there: what it sends between them.

Sizes are such that the compiler treats the layers as it treats large ones: it gathers each weight whole. Below a width
of about 512 it may pass parts around a ring instead."""

import importlib.util
import re
from collections.abc import Iterator

import jax
import pytest

import llama_jax.objectives.next_token as next_token_module
from llama_jax.core.config import MeshConfig
from llama_jax.core.sharding import make_mesh
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.collectives import Collective, collectives, table, wire_bytes
from llama_jax.planning.topology import compile_without_devices, tpu_devices
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPU needs libtpu, which has a wheel for Linux on x86_64 only (the extra 'plan')",
)

DEVICES, ROWS, LENGTH = 8, 8, 256
D, F, L, V = 512, 1408, 4, 4096
MODEL = LlamaConfig(V, D, F, L, num_heads=4, num_kv_heads=4, head_size=128, context_length=LENGTH)
BFLOAT16, FLOAT32 = 2, 4
MATRICES = {
    "attention/q_proj": D * D,
    "attention/k_proj": D * D,
    "attention/v_proj": D * D,
    "attention/o_proj": D * D,
    "mlp/gate_proj": D * F,
    "mlp/up_proj": D * F,
    "mlp/down_proj": F * D,
}
"""Elements of each matrix of a layer."""
LAYER_LOOPS = {"forward": "jit(step)/jvp(Llama)/while", "backward": "jit(step)/transpose(jvp(Llama))/while"}
CHUNK_LOOP = "jit(step)/jvp()/shard_map/while"


@pytest.fixture(scope="module")
def compiled() -> Iterator[jax.stages.Compiled]:
    with pytest.MonkeyPatch.context() as patch:
        # The loss of one row of 256 positions in four chunks.
        patch.setattr(next_token_module, "CHUNK_BYTES", LENGTH // 4 * V * FLOAT32)
        mesh = make_mesh(MeshConfig(fsdp=DEVICES), devices=tpu_devices("v5e:2x4"))
        model = language_model(MODEL, ComputeConfig(dtype="bfloat16", remat="full", attention="xla"))
        with jax.set_mesh(mesh):
            program = make_program(mesh, model, next_token(model), TrainingConfig(batch_size=ROWS), LENGTH, seed=0)
            lowered = program.step.lower(  # pyright: ignore[reportFunctionMemberAccess]
                program.state_shapes, program.frozen_shapes, program.batch_shapes(ROWS)
            )
            yield compile_without_devices(lowered)


@pytest.fixture(scope="module")
def sent(compiled) -> list[Collective]:
    found = collectives(compiled.as_text())
    print(f"\n{table(found)}")
    return found


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_each_weight_of_a_layer_is_gathered_once_in_bfloat16(sent, phase):
    gathers = [each for each in sent if each.kind == "all-gather" and each.where == LAYER_LOOPS[phase]]
    weights = [re.sub(r".*/layers/(.*)/sharding_constraint", r"\1", each.name) for each in gathers]
    assert sorted(weights) == sorted(MATRICES)
    for each, weight in zip(gathers, weights, strict=True):
        assert (each.dtypes, each.count, each.group_size, each.phase) == (("bf16",), L, DEVICES, phase)
        assert each.bytes == BFLOAT16 * MATRICES[weight]


def test_the_gradients_of_a_layer_are_reduced_once_in_bfloat16(sent):
    (reduction,) = [
        each
        for each in sent
        if each.where in LAYER_LOOPS.values() and "reduce" in each.kind and each.bytes > FLOAT32 * D
    ]
    assert (reduction.dtypes, reduction.count, reduction.where) == (("bf16",), L, LAYER_LOOPS["backward"])
    assert reduction.bytes == BFLOAT16 * sum(MATRICES.values())


def test_nothing_is_sent_between_the_chunks_of_the_loss(compiled, sent):
    assert f'op_name="{CHUNK_LOOP}"' in compiled.as_text()
    assert {each.where for each in sent} == {"entry", *LAYER_LOOPS.values()}


def test_the_head_is_gathered_once_and_its_gradient_reduced_once(sent):
    large = [each for each in sent if each.where == "entry" and each.bytes >= BFLOAT16 * D * V]
    gather, reduction = sorted(large, key=lambda each: each.kind)
    assert (gather.kind, gather.dtypes, gather.bytes) == ("all-gather", ("bf16",), BFLOAT16 * D * V)
    assert "reduce" in reduction.kind and reduction.bytes <= FLOAT32 * D * V


def test_looking_tokens_up_exchanges_their_rows_and_not_the_table(sent):
    exchanges = [each for each in sent if each.kind == "all-to-all"]
    rows = BFLOAT16 * ROWS // DEVICES * LENGTH * D
    assert [(each.dtypes, each.bytes, each.phase) for each in exchanges] == [
        (("bf16",), rows, "forward"),
        (("bf16",), rows, "backward"),
    ]


def test_a_device_sends_hardly_more_than_it_must(sent):
    layers = 3 * L * BFLOAT16 * sum(MATRICES.values())  # gathered twice, scattered once
    head = (BFLOAT16 + FLOAT32) * D * V
    exchanged = 2 * BFLOAT16 * ROWS // DEVICES * LENGTH * D
    least = (DEVICES - 1) / DEVICES * (layers + head + exchanged)
    assert least <= sum(map(wire_bytes, sent)) < 1.01 * least


def test_the_state_is_updated_in_place(compiled):
    parameters = L * (sum(MATRICES.values()) + 2 * D) + 2 * V * D + D
    memory = compiled.memory_analysis()
    # Parameters and two moments in float32; norm scales are on each device whole.
    assert memory.alias_size_in_bytes >= 3 * FLOAT32 * parameters / DEVICES
    assert memory.alias_size_in_bytes > 0.99 * memory.argument_size_in_bytes
