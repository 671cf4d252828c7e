"""The least that a layout sends, against sums made by hand."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from llama_jax.core.config import MESH_AXES, MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model import lora, quantized
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.compiled.collectives import Collective, wire_bytes
from llama_jax.planning.estimates.layout_minimum import layout_minimum
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Partition, Program, make_program

D, F, L, V, N, K, H = 256, 704, 3, 2048, 4, 2, 64
ROWS, T = 16, 128
MODEL = LlamaConfig(V, D, F, L, num_heads=N, num_kv_heads=K, head_size=H, context_length=T)
LAYER = D * N * H + 2 * D * K * H + N * H * D + 3 * D * F
"""Parameters of a layer in matrices."""
BFLOAT16, FLOAT32 = 2, 4


def program(
    mesh: Mesh, config: LlamaConfig = MODEL, rows: int = ROWS, microbatches: int = 1, remat: Any = "full"
) -> Program:
    model = language_model(config, ComputeConfig(dtype="bfloat16", remat=remat, attention="xla"))
    training = TrainingConfig(batch_size=rows, microbatches=microbatches)
    with jax.set_mesh(mesh):
        return make_program(model, next_token(model), training, config.context_length, seed=0)


def minimum(mesh: MeshConfig, **settings) -> list[Collective]:
    return layout_minimum(program(make_mesh(mesh), **settings))


def of(exchanges: list[Collective], name: str, kind: str = "", phase: str = "") -> list[tuple[int, int]]:
    """Bytes and count of the exchanges of something."""
    return [
        (each.bytes, each.count)
        for each in exchanges
        if name in each.name and each.kind.startswith(kind) and each.phase.startswith(phase)
    ]


class Device:
    """As much of a device as a mesh wants to know that nothing is compiled for."""

    platform, device_kind, num_cores, process_index = "tpu", "TPU v5 lite", 1, 0

    def __init__(self, slice_index: int) -> None:
        self.slice_index = slice_index


def absent(data: int, fsdp: int) -> Mesh:
    """Slices of `fsdp` devices."""
    devices = np.array([Device(number // fsdp) for number in range(data * fsdp)], object)
    return Mesh(devices.reshape(data, fsdp, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


LLAMA_7B = dataclasses.replace(SIZES["llama_7b"], context_length=2048)


def test_7b_on_256_devices_sends_at_least_36_78_gibibytes():
    """Three times the layers (12.0625 GiB in bfloat16), twice the head (0.244), all but the 256th part of each; the
    rows of the table, forth and back."""
    exchanges = layout_minimum(program(absent(1, 256), LLAMA_7B, rows=2048))
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008) * BFLOAT16
    head = 4096 * 32000 * BFLOAT16
    rows = 2048 * 2048 // 256 * 4096 * BFLOAT16
    norms = 2 * (2 * 32 + 1) * 4096 * FLOAT32
    by_hand = 255 / 256 * (3 * layers + 2 * head + 2 * rows + norms)
    total = sum(map(wire_bytes, exchanges))
    assert total == pytest.approx(by_hand, rel=1e-9)
    assert round(total / 2**30, 2) == 36.78


def wire_along_data(exchanges: list[Collective]) -> int:
    return sum(wire_bytes(each) for each in exchanges if each.axes == ("data",))


def test_what_slices_hold_alike_is_added_up_once_a_step():
    """Two slices: each device's 256th part of the gradients of 7B, in float32 when there are four microbatches."""
    exchanges = layout_minimum(program(absent(2, 256), LLAMA_7B, rows=2048, microbatches=4))
    parameters = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 4096 * 32000
    assert wire_along_data(exchanges) == pytest.approx(parameters // 256 * FLOAT32, rel=1e-9)
    assert {each.slices for each in exchanges if each.axes == ("data",)} == {2}
    assert {each.slices for each in exchanges if each.axes == ("fsdp",)} == {1}
    one = layout_minimum(program(absent(2, 256), LLAMA_7B, rows=2048))
    assert wire_along_data(one) == pytest.approx(parameters // 256 * BFLOAT16, rel=1e-9)


def test_every_microbatch_gathers_twice_and_scatters_once():
    exchanges = minimum(MeshConfig(data=2, fsdp=4), microbatches=2)
    for phase in ("forward", "backward"):
        assert of(exchanges, "weights of a layer", "all-gather", phase) == [(LAYER * BFLOAT16, 2 * L)]
    assert of(exchanges, "gradients of a layer", "reduce-scatter") == [(LAYER * BFLOAT16, 2 * L)]
    assert of(exchanges, "weights outside") == [(D * V * BFLOAT16, 2)]
    assert of(exchanges, "gradients outside", "reduce-scatter") == [(D * V * BFLOAT16, 2)]
    tokens = ROWS * T // 8 // 2
    assert of(exchanges, "rows of the table") == [(tokens * D * BFLOAT16, 2)] * 2


def test_tensor_adds_activations_up_twice_a_layer_and_pass():
    exchanges = minimum(MeshConfig(fsdp=4, tensor=2), remat="dots")
    residual = ROWS * T // 4 * D * BFLOAT16
    assert of(exchanges, "residual stream") == [(residual, 2 * L), (residual, 2 * L)]
    assert of(exchanges, "last hidden state") == [(residual, 1)]
    assert of(exchanges, "rows of the table", "all-reduce") == [(residual, 1)]
    assert of(exchanges, "weights of a layer", phase="forward") == [(LAYER * BFLOAT16 // 2, L)]
    again = minimum(MeshConfig(fsdp=4, tensor=2), remat="full")
    assert of(again, "residual stream", phase="backward") == [(residual, 3 * L)]


def test_sequence_gathers_keys_and_values_of_whole_rows():
    exchanges = minimum(MeshConfig(fsdp=2, sequence=2, tensor=2))
    keys_and_values = 2 * (ROWS // 2) * T * (K // 2) * H * BFLOAT16
    assert of(exchanges, "keys and values") == [(keys_and_values, L)] * 3
    # Devices that share rows share the storage too.
    assert {each.axes for each in exchanges if "weights" in each.name} == {("fsdp", "sequence")}
    assert [each.axes for each in exchanges if each.name == "keys and values"] == [("sequence",)] * 3


def test_stages_of_a_torus_send_as_much_as_one_axis():
    staged = minimum(MeshConfig(fsdp=8, fsdp_stages=(4, 2)))
    assert sum(map(wire_bytes, staged)) == sum(map(wire_bytes, minimum(MeshConfig(fsdp=8))))
    assert {each.axes for each in staged} == {("fsdp_0", "fsdp_1")}


def test_one_device_sends_nothing():
    assert layout_minimum(program(make_mesh(MeshConfig(), devices=jax.devices()[:1]))) == []


@pytest.mark.parametrize(("storage", "sent"), [("bfloat16", BFLOAT16), ("int8", 1)])
def test_an_adapter_gathers_the_base_as_it_is_stored_and_sends_gradients_of_its_factors_alone(storage, sent):
    """Rank 8 on q (D x N H) and v (D x K H): A is split with its input, B is whole on each device."""
    adapter, mesh = AdapterConfig(rank=8), make_mesh(MeshConfig(fsdp=8))
    model = language_model(MODEL, ComputeConfig(dtype="bfloat16", remat="full", attention="xla"))
    with jax.set_mesh(mesh):
        made = adapted(mesh, model, adapter, storage)
    exchanges = layout_minimum(made)
    a, b = 2 * D * 8, 8 * (N + K) * H
    gathered = of(exchanges, "weights of a layer", phase="forward")
    # The scales of an int8 matrix whose output is split (o and down: D each) are gathered in float32.
    scales = [] if storage == "bfloat16" else [(2 * D * FLOAT32, L)]
    codes = (LAYER * sent, L) if storage == "int8" else (LAYER * sent + a * BFLOAT16, L)
    assert sorted(gathered) == sorted([codes, *scales, *([(a * BFLOAT16, L)] if storage == "int8" else [])])
    assert of(exchanges, "gradients of a layer", "reduce-scatter") == [(a * BFLOAT16, L)]
    assert of(exchanges, "gradients of a layer", "all-reduce") == [(b * BFLOAT16, L)]
    assert of(exchanges, "gradients outside") == []
    assert [each.phase for each in exchanges if each.name == "rows of the table"] == ["forward"]


def adapted(mesh: Mesh, model: LanguageModel, adapter: AdapterConfig, storage: Any) -> Program:
    def init(key):
        base = quantized.store_as(model.init(key), storage)
        return lora.with_adapter(base, lora.init_adapter(adapter, base, key))

    base, factors = lora.without_adapter(jax.eval_shape(lambda: init(jax.random.key(0))))
    axes = lora.with_adapter(quantized.stored_axes(model.axes, base), lora.adapter_axes(factors, model.axes))
    partition = Partition(init, axes, model.decays, lora.is_trainable(adapter))
    training = TrainingConfig(batch_size=ROWS)
    return make_program(model, next_token(model), training, T, seed=0, partition=partition)
