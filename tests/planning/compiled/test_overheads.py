"""What a program for a GPU does beside its products: counted by hand in small texts, and held to in the step."""

import importlib.util
import textwrap

import jax
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.cross_entropy import CHUNK_BYTES
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.compiled import hlo
from llama_jax.planning.compiled.overheads import overheads
from llama_jax.planning.topology import absent_devices, compile_without_devices
from llama_jax.runs.methods import all_parameters, low_rank_adapter
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

TEXT = textwrap.dedent(
    """
    HloModule step, num_partitions=1

    %wrapped_transpose_computation (p: bf16[4,8]) -> bf16[8,4] {
      %p = bf16[4,8]{1,0} parameter(0)
      ROOT %transpose = bf16[8,4]{1,0} transpose(%p), dimensions={1,0}
    }

    %scaled_transpose_computation (q: bf16[4,8]) -> bf16[8,4] {
      %q = bf16[4,8]{1,0} parameter(0)
      %twice = bf16[4,8]{1,0} add(%q, %q)
      ROOT %turned = bf16[8,4]{1,0} transpose(%twice), dimensions={1,0}
    }

    %put (all: bf16[3,8,4], one: bf16[8,4], turn: s32[]) -> bf16[3,8,4] {
      %all = bf16[3,8,4]{2,1,0} parameter(0)
      %one = bf16[8,4]{1,0} parameter(1)
      %layer = bf16[1,8,4]{2,1,0} bitcast(%one)
      %turn = s32[] parameter(2)
      %zero = s32[] constant(0)
      %place = s32[] add(%turn, %zero)
      ROOT %update = bf16[3,8,4]{2,1,0} dynamic-update-slice(%all, %layer, %place, %zero, %zero)
    }

    %product (a: f32[8,4], b: f32[4,16]) -> f32[8,16] {
      %a = f32[8,4]{1,0} parameter(0)
      %b = f32[4,16]{1,0} parameter(1)
      ROOT %dot.1 = f32[8,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
    }

    %body (carry: (s32[], bf16[4,8], bf16[3,8,4])) -> (s32[], bf16[4,8], bf16[3,8,4]) {
      %carry = (s32[], bf16[4,8]{1,0}, bf16[3,8,4]{2,1,0}) parameter(0)
      %i = s32[] get-tuple-element(%carry), index=0
      %x = bf16[4,8]{1,0} get-tuple-element(%carry), index=1
      %stack = bf16[3,8,4]{2,1,0} get-tuple-element(%carry), index=2
      %moved = bf16[8,4]{1,0} fusion(%x), kind=kInput, calls=%wrapped_transpose_computation
      %scaled.remat2 = bf16[8,4]{1,0} fusion(%x), kind=kInput, calls=%scaled_transpose_computation
      %fusion-start = ((bf16[3,8,4], bf16[8,4], s32[]), bf16[3,8,4], u32[]) fusion-start(%stack, %moved, %i), calls=%put
      %fusion-done = bf16[3,8,4]{2,1,0} fusion-done(%fusion-start)
      ROOT %tuple = (s32[], bf16[4,8]{1,0}, bf16[3,8,4]{2,1,0}) tuple(%i, %x, %fusion-done)
    }

    %condition (state: (s32[], bf16[4,8], bf16[3,8,4])) -> pred[] {
      %state = (s32[], bf16[4,8]{1,0}, bf16[3,8,4]{2,1,0}) parameter(0)
      ROOT %less = pred[] constant(true)
    }

    ENTRY %main (x0: bf16[4,8], a0: f32[8,4], b0: f32[4,16], c0: bf16[8,4]) -> f32[8,16] {
      %x0 = bf16[4,8]{1,0} parameter(0)
      %a0 = f32[8,4]{1,0} parameter(1)
      %b0 = f32[4,16]{1,0} parameter(2)
      %c0 = bf16[8,4]{1,0} parameter(3)
      %copy.1 = bf16[4,8]{1,0} copy(%x0)
      %loop = (s32[], bf16[4,8]{1,0}, bf16[3,8,4]{2,1,0}) while(%copy.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
      %cublas = (bf16[8,8]{1,0}, s8[16]{0}) custom-call(%c0, %x0), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
      ROOT %made = f32[8,16]{1,0} fusion(%a0, %b0), kind=kCustom, calls=%product
    }
    """  # noqa: E501  (as XLA writes it)
)


def test_what_only_moves_arrays_is_counted_with_its_loop() -> None:
    found = overheads(TEXT)
    assert (found.copies, found.copied_bytes) == (1 + 3, (1 + 3) * 2 * 32)
    assert found.stacked_bytes == 3 * 2 * 32
    assert found.repeated == 3


def test_products_are_counted_by_the_type_of_their_factors() -> None:
    found = overheads(TEXT)
    assert found.float32_flops == 2 * 8 * 16 * 4
    assert found.flops == found.float32_flops + 2 * 8 * 8 * 4


V, LENGTH, ROWS = 5120, 4096, 4
MODEL = LlamaConfig(V, 256, 512, 3, num_heads=4, num_kv_heads=2, head_size=64, context_length=LENGTH)
LORA = low_rank_adapter(AdapterConfig(rank=16, dropout=0.0, target_modules=("all-linear",)), "bfloat16", 1e-4)


def _step(method) -> str:
    """The text of a small step for an H100."""
    model = language_model(MODEL, ComputeConfig("bfloat16", remat="dots"), method.dropout)
    with jax.set_mesh(make_mesh(MeshConfig(), absent_devices("h100:1x1"))):
        settings = TrainingConfig(batch_size=ROWS), LENGTH, 0, method.partition(model)
        program = make_program(model, next_token(model), *settings)
        shapes = program.state_shapes, program.frozen_shapes, program.batch_shapes(ROWS)
        return compile_without_devices(program.step.lower(*shapes)).as_text() or ""


needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="compiling for GPU needs JAX's CUDA plugin, which has a wheel for Linux only (the extra 'plan-gpu')",
)


LAYERS = MODEL.num_layers * ROWS * LENGTH
KEPT = 2 * LAYERS * (4 * MODEL.width + 2 * MODEL.width // 2 + 2 * MODEL.mlp_width)
"""Bytes of what the layers keep: the input, queries, keys, values, what is mixed of them and made of that, and the two
halves of the MLP; once, although an adapted Linear makes two products."""


@pytest.mark.slow
@needs_cuda_plugin
def test_a_step_of_lora_keeps_each_product_once_and_makes_none_in_float32() -> None:
    found = overheads(_step(LORA))
    assert found.float32_flops == 0 and found.repeated == 0
    assert found.copied_bytes < 0.01 * KEPT
    # (Some of it is put in its place by what makes it.)
    assert 0.2 * KEPT < found.stacked_bytes < 0.6 * KEPT


@pytest.mark.slow
@needs_cuda_plugin
def test_a_step_never_has_all_logits_and_goes_once_over_the_optimizers_arrays(monkeypatch) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "gpu", 4 * V * ROWS * LENGTH // 4)  # pyright: ignore[reportArgumentType]
    text = _step(all_parameters())
    found = overheads(text)
    assert found.float32_flops == 0 and found.repeated == 0 and found.copied_bytes < 0.1 * KEPT
    module = hlo.parse(text)
    of_vocabulary = [
        array.size // V
        for instructions in module.computations.values()
        for each in instructions
        for array in each.arrays
        if V in array.shape and MODEL.width not in array.shape
    ]
    assert max(of_vocabulary) == ROWS * LENGTH // 4
    # Each parameter and its two moments are written by one instruction.
    leaves = jax.tree.leaves(language_model(MODEL, ComputeConfig()).shapes())
    for shape in {leaf.shape for leaf in leaves if leaf.size > 2**17}:
        written = [
            sum(array.shape == shape and array.dtype == "f32" for array in each.arrays)
            for each in module.computations[module.entry]
            if each.opcode == "fusion"
        ]
        assert written.count(3) == sum(leaf.shape == shape for leaf in leaves)
