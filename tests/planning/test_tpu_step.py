"""One step of a small LLaMA compiled for eight TPU chips that are not there: what it sends between them.

The compiler treats this size as it does 7B on 256 chips, where only the reductions take another form."""

import importlib.util
from collections.abc import Iterator

import jax
import pytest

import llama_jax.objectives.cross_entropy as cross_entropy
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.compiled.collectives import Collective, collectives, wire_bytes
from llama_jax.planning.topology import absent_devices, compile_without_devices
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPU needs libtpu, which has a wheel for Linux on x86_64 only (the extra 'plan')",
)

DEVICES, ROWS, LENGTH, CHUNKS = 8, 8, 256, 4
D, F, L, V = 256, 704, 3, 2048
MODEL = LlamaConfig(V, D, F, L, num_heads=4, num_kv_heads=4, head_size=64, context_length=LENGTH)
BFLOAT16, FLOAT32 = 2, 4
MATRICES = [BFLOAT16 * size for size in (D * D, D * D, D * D, D * D, D * F, D * F, F * D)]
"""Bytes of q, k, v, o, gate, up and down of a layer as they are sent."""
HEAD = BFLOAT16 * D * V


def compiled_for(topology: str, mesh: MeshConfig, config: LlamaConfig, rows: int) -> jax.stages.Compiled:
    made = make_mesh(mesh, devices=absent_devices(topology))
    model = language_model(config, ComputeConfig(dtype="bfloat16", remat="full", attention="xla"))
    with jax.set_mesh(made):
        training = TrainingConfig(batch_size=rows)
        program = make_program(model, next_token(model), training, config.context_length, seed=0)
        lowered = program.step.lower(  # pyright: ignore[reportFunctionMemberAccess]
            program.state_shapes, program.frozen_shapes, program.batch_shapes(rows)
        )
        return compile_without_devices(lowered)


@pytest.fixture(scope="module")
def compiled() -> Iterator[jax.stages.Compiled]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "chunk_bytes", lambda: ROWS // DEVICES * LENGTH // CHUNKS * V * FLOAT32)
        yield compiled_for("v5e:2x4", MeshConfig(fsdp=DEVICES), MODEL, ROWS)


@pytest.fixture(scope="module")
def sent(compiled) -> list[Collective]:
    return collectives(compiled.as_text())


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_each_weight_of_a_layer_is_gathered_once_in_bfloat16(sent, phase):
    gathers = [each for each in sent if each.kind == "all-gather" and each.where != "entry" and each.phase == phase]
    assert sorted(each.bytes for each in gathers) == sorted(MATRICES)
    assert {(each.dtypes, each.count, each.group_size) for each in gathers} == {(("bf16",), L, DEVICES)}


def test_each_gradient_of_a_layer_is_reduced_once_in_bfloat16(sent):
    norms = FLOAT32 * 2 * D
    reductions = [each for each in sent if "reduce" in each.kind and each.where != "entry" and each.bytes > norms]
    assert sum(each.bytes for each in reductions) == sum(MATRICES)
    assert {(each.dtypes, each.count, each.phase) for each in reductions} == {(("bf16",), L, "backward")}


def test_nothing_is_sent_between_the_chunks_of_the_loss(compiled, sent):
    forward, backward, chunks = 1, 1, 1
    assert compiled.as_text().count(" while(") == forward + backward + chunks
    over_layers = {each.where for each in sent if each.kind == "all-gather" and each.bytes in MATRICES}
    assert len(over_layers) == forward + backward
    assert {each.where for each in sent} == {"entry", *over_layers}


def test_the_head_is_gathered_once_and_its_gradient_reduced_once(sent):
    large = [each for each in sent if each.where == "entry" and each.bytes >= HEAD]
    gather, reduction = sorted(large, key=lambda each: each.kind)
    assert (gather.kind, gather.dtypes, gather.bytes) == ("all-gather", ("bf16",), HEAD)
    assert "reduce" in reduction.kind and reduction.dtypes == ("bf16",)
    assert reduction.bytes <= HEAD + 2**16  # small sums may travel with it


def test_looking_tokens_up_exchanges_their_rows_and_not_the_table(sent):
    exchanges = [each for each in sent if each.kind == "all-to-all"]
    rows = BFLOAT16 * ROWS // DEVICES * LENGTH * D
    assert {(each.dtypes, each.bytes, each.phase) for each in exchanges} == {
        (("bf16",), rows, "forward"),
        (("bf16",), rows, "backward"),
    }


def test_a_device_sends_hardly_more_than_it_must(sent):
    assert sum(map(wire_bytes, sent)) < 1.01 * least(MODEL, DEVICES)


def least(config: LlamaConfig, devices: int) -> float:
    """What the layout cannot do without, in bytes that a device sends, with a row on each."""
    matrices = 4 * config.width**2 + 3 * config.width * config.mlp_width
    layers = 3 * config.num_layers * matrices  # gathered twice, scattered once
    head = 2 * config.width * config.vocab_size  # gathered, scattered
    rows = 2 * config.context_length * config.width  # exchanged forward and backward
    return BFLOAT16 * (devices - 1) / devices * (layers + head + rows)


WIDE = LlamaConfig(2048, 1024, 2816, 2, num_heads=8, num_kv_heads=8, head_size=128, context_length=128)
"""Matrices of which a device has enough for the compiler to treat them as it does those of 7B."""


@pytest.mark.parametrize(
    ("stages", "kind", "group", "most"),
    [((), "all-reduce", 16, 1.35), ((4, 4), None, 4, 1.05)],
)
@pytest.mark.slow
def test_over_two_dimensions_of_a_torus_gradients_are_reduced_at_once_or_in_stages(stages, kind, group, most):
    """By the compiler's choice gradients are all-reduced along both dimensions together: twice the bytes of a
    reduce-scatter, on twice the links. In stages they are scattered along one and then the other."""
    hlo = compiled_for("v5e:4x4", MeshConfig(fsdp=16, fsdp_stages=stages), WIDE, rows=16).as_text()
    sent = collectives(hlo)
    reductions = [each for each in sent if "reduce" in each.kind and each.bytes > 2**18]
    assert {each.group_size for each in reductions} == {group}
    assert {each.kind for each in reductions} == ({kind} if kind else {"reduce-scatter", "all-reduce"})
    scattered = sum(each.count * each.bytes for each in reductions if each.kind == "reduce-scatter")
    gradients = BFLOAT16 * (2 * (4 * 1024**2 + 3 * 1024 * 2816) + 1024 * 2048)
    assert scattered > (gradients if stages else -1)
    assert sum(map(wire_bytes, sent)) < most * least(WIDE, 16)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=4, tensor=2), MeshConfig(fsdp=4, sequence=2)])
def test_looked_up_rows_and_the_heads_gradient_are_sent_in_parts_on_every_mesh(mesh):
    sent = collectives(compiled_for("v5e:2x4", mesh, MODEL, ROWS).as_text())
    large = [each for each in sent if each.where == "entry" and wire_bytes(each) > 2**14]
    # The head is gathered along the axes that split its width alone; its gradient is a part along `tensor`.
    parts = BFLOAT16 * D * V // mesh.tensor
    assert [each.bytes for each in large if each.kind == "all-gather"] == [parts]
    assert sum(each.bytes for each in large if "reduce" in each.kind and each.group_size > 2) <= parts + 2**16
    assert len([each for each in large if each.kind == "all-to-all"]) >= 2


def test_the_state_is_updated_in_place(compiled):
    parameters = L * (sum(MATRICES) // BFLOAT16 + 2 * D) + 2 * V * D + D
    memory = compiled.memory_analysis()
    # Parameters and two moments in float32, split among the devices (norm scales are not).
    assert memory.alias_size_in_bytes >= 3 * FLOAT32 * parameters / DEVICES
    assert memory.alias_size_in_bytes > 0.98 * memory.argument_size_in_bytes
