"""The compiled step of a LoRA run: what it holds of a base it does not train, and in what form it sends it."""

import dataclasses
import importlib.util
import re

import jax
import numpy as np
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model import lora, quantized
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.compiled.collectives import collectives
from llama_jax.planning.topology import absent_devices, compile_without_devices
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Partition, Program, make_program

DEVICES = 8
BFLOAT16, FLOAT32 = 2, 4
KERNELS_OF_7B = 4 * 4096**2 + 3 * 4096 * 11008
"""Parameters of a layer in matrices."""
ADAPTER = AdapterConfig()


def model_of(config: LlamaConfig) -> LanguageModel:
    """With bfloat16 products and full remat."""
    return language_model(config, ComputeConfig(dtype="bfloat16", remat="full", attention="xla"), ADAPTER.dropout)


def program(mesh: jax.sharding.Mesh, model: LanguageModel, storage: str, length: int) -> Program:
    """A LoRA run with one row a device."""

    def init(key):
        base = quantized.store_as(model.init(key), storage)
        return lora.with_adapter(base, lora.init_adapter(ADAPTER, base, key))

    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    base, adapter = lora.without_adapter(shapes)
    axes = lora.with_adapter(quantized.stored_axes(model.axes, base), lora.adapter_axes(adapter, model.axes))
    partition = Partition(init, axes, model.decays, lora.is_trainable(ADAPTER))
    training = TrainingConfig(batch_size=DEVICES)
    return make_program(model, next_token(model), training, length, seed=0, partition=partition)


def lowered(program: Program) -> jax.stages.Lowered:
    shapes = program.state_shapes, program.frozen_shapes, program.batch_shapes(DEVICES)
    return program.step.lower(*shapes)  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "nf4"])
@pytest.mark.slow
def test_a_7b_step_holds_the_base_once_as_it_is_stored(storage) -> None:
    """Two layers more take their own stored bytes, their adapter and moments, and the activations between them: no
    copy in float32, no gradient, no moment and no matrix turned back, each of which would be larger."""
    mesh = make_mesh(MeshConfig(fsdp=DEVICES))
    memory, stored, state = {}, {}, {}
    with jax.set_mesh(mesh):
        for layers in (2, 4):
            run = program(mesh, model_of(dataclasses.replace(SIZES["llama_7b"], num_layers=layers)), storage, 512)
            memory[layers] = lowered(run).compile().memory_analysis()
            stored[layers] = held(run.frozen_shapes)
            state[layers] = held(run.state_shapes)
    arguments = memory[4].argument_size_in_bytes - memory[2].argument_size_in_bytes
    # Of two layers and two modules: A, split over the devices, and B, whole, of rank 8, float32; two moments of them.
    factors = 2 * 2 * 8 * 4096 * FLOAT32 * (1 + DEVICES) // DEVICES
    assert state[4] - state[2] == 3 * factors
    assert arguments == pytest.approx(stored[4] - stored[2] + 3 * factors, abs=2**12)
    temporary = memory[4].temp_size_in_bytes - memory[2].temp_size_in_bytes
    inputs, shard = 2 * 512 * 4096 * BFLOAT16, 2 * KERNELS_OF_7B * BFLOAT16 // DEVICES
    # (The CPU keeps the stack of layer inputs in float32 as well.)
    assert temporary <= 3 * inputs + 2 * factors < shard / 3


def held(shapes) -> int:
    """Bytes on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)
    )


D, F, L, V, LENGTH = 256, 704, 3, 2048, 128
SMALL = LlamaConfig(V, D, F, L, num_heads=4, num_kv_heads=4, head_size=64, context_length=LENGTH)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel here")
@pytest.mark.parametrize(("storage", "dtype", "part"), [("bfloat16", "bf16", 2), ("nf4", "u8", 0.5)])
@pytest.mark.slow
def test_on_tpu_the_base_is_gathered_as_it_is_stored_and_never_reduced(storage, dtype, part) -> None:
    mesh = make_mesh(MeshConfig(fsdp=DEVICES), devices=absent_devices("v5e:2x4"))
    model = model_of(SMALL)
    with jax.set_mesh(mesh):
        run = program(mesh, model, storage, LENGTH)
        compiled = compile_without_devices(lowered(run))
    sent = [each for each in collectives(compiled.as_text()) if each.where != "entry"]
    kernels = sorted(part * size for size in (D * D, D * D, D * D, D * D, D * F, D * F, F * D))
    for phase in ("forward", "backward"):
        gathers = [each for each in sent if each.kind == "all-gather" and each.phase == phase]
        assert sorted(each.bytes for each in gathers if each.bytes >= kernels[0]) == kernels
        assert {each.dtypes for each in gathers if each.bytes >= kernels[0]} == {(dtype,)}
    factors = sum(leaf.size * 4 for leaf in jax.tree.leaves(run.state_shapes.trainable)) // L
    reduced = sum(each.bytes for each in sent if "reduce" in each.kind and each.phase == "backward")
    assert 0 < reduced <= factors
    # Nothing in memory is a kernel, or its part on a device, in float32. (No other array has such sides; S(1) is the
    # memory on the chip, through which one small kernel passes.)
    sides = rf"(?:{D}|{F}|{D // DEVICES})"
    assert re.findall(rf" f32\[(?:\d+,)?{sides},{sides}\]\S*(?<!S\(1\)\}}) .*", outside_of_fusions(compiled)) == []


def outside_of_fusions(compiled: jax.stages.Compiled) -> str:
    """The computations whose arrays are in memory: what is inside of a fusion never is."""
    blocks = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \()", compiled.as_text() or "")
    names = [block.split("(")[0] for block in blocks]
    return "\n".join(b for b, name in zip(blocks, names, strict=True) if "fused" not in name and "fusion" not in name)
