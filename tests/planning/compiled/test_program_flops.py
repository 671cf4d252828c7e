"""FLOPs of traced programs, against the formula of the model and against counts made by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention.choice import attention
from llama_jax.model.config import SIZES, ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.compiled.program_flops import program_flops
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Program, make_program

D, F, L, V, N, H = 256, 704, 3, 2048, 4, 64
ROWS, T = 8, 512
TOKENS = ROWS * T
MODEL = LlamaConfig(V, D, F, L, num_heads=N, num_kv_heads=N, head_size=H, context_length=T)
NORMS = (2 * L + 1) * D
"""Parameters that the formula counts as if they were in matrix products."""


def traced(
    model: LlamaConfig = MODEL,
    mesh: MeshConfig | None = None,
    rows: int = ROWS,
    length: int = T,
    microbatches: int = 1,
    loop_turns: float | None = None,
    **compute: Any,
) -> tuple[Program, int]:
    settings: dict[str, Any] = {"dtype": "bfloat16", **compute}
    network = language_model(model, ComputeConfig(**settings))
    layout = make_mesh(mesh or MeshConfig(), devices=jax.devices() if mesh else jax.devices()[:1])
    with jax.set_mesh(layout):
        training = TrainingConfig(batch_size=rows, microbatches=microbatches)
        program = make_program(network, next_token(network), training, length, seed=0)
        shapes = program.state_shapes, program.frozen_shapes, program.batch_shapes(rows)
        jaxpr = program.step.trace(*shapes).jaxpr  # pyright: ignore[reportFunctionMemberAccess]
    return program, program_flops(jaxpr, loop_turns)


def formula(program: Program, rows: int = ROWS, length: int = T) -> int:
    return program.flops_per_token * rows * length


def test_a_program_that_recomputes_nothing_is_the_formula_but_for_norms_and_masked_scores():
    program, flops = traced(attention="xla", remat="none")
    masked = 6 * L * N * H * T * TOKENS  # `xla` makes the half of the scores that the formula leaves out
    assert flops == formula(program) - 6 * NORMS * TOKENS + masked


def test_full_remat_makes_again_all_of_a_layer_but_its_last_product():
    _, full = traced(attention="xla", remat="full")
    _, none = traced(attention="xla", remat="none")  # a third of it forward
    head, last_products = 2 * D * V * TOKENS, 2 * L * F * D * TOKENS
    assert full - none == none // 3 - head - last_products


@pytest.mark.parametrize("kernel", ["splash", "triton"])
def test_a_kernel_counts_half_of_its_scores_and_seven_products_in_the_backward_pass(kernel):
    query, key = jnp.ones((2, T, N, H)), jnp.ones((2, T, N // 2, H))

    def loss(*arrays: jax.Array) -> jax.Array:
        return attention(*arrays, implementation=kernel).sum()

    flops = program_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(query, key, key))
    product = 2 * (2 * N * T * T * H) // 2
    # Scores and mixing; dQ and dK, dV apart, each with scores and dP of its own. (Sums over the head come on top.)
    assert flops == pytest.approx((2 + 3 + 4) * product, rel=1e-3)


@pytest.mark.parametrize(
    ("remat", "ratio"), [("none", 1.0195), ("dots", 1.0195), ("attention", 1.2635), ("full", 1.2765)]
)
def test_recomputation_of_7b_by_remat_policy(remat, ratio):
    """Full remat is not 4/3 of the formula: of the forward pass, the down projections (21 %) and the head (2 %) are not
    made again. The 2 % without any are the scores that the kernels make once more in the backward pass."""
    model = dataclasses.replace(SIZES["llama_7b"], context_length=2048)
    program, flops = traced(model, MeshConfig(), 8, 2048, attention="splash", remat=remat)
    assert flops / formula(program, 8, 2048) == pytest.approx(ratio, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("compute", [{"attention": "splash"}, {"attention": "xla", "remat": "full"}])
def test_neither_microbatches_nor_the_mesh_change_the_count(compute):
    _, plain = traced(**compute)
    _, in_parts = traced(microbatches=2, **compute)
    _, spread = traced(mesh=MeshConfig(fsdp=2, sequence=2, tensor=2), **compute)
    assert plain == in_parts == spread


def test_blocked_attention_counts_by_the_average_turns_of_its_loops():
    program, flops = traced(attention="blocked", loop_turns=(T / 128 + 1) / 2)
    beyond_the_mask = 128 / T  # half of the blocks on the diagonal, in each of 2 + 5 products
    half_a_product = L * N * H * T * TOKENS
    expected = formula(program) - 6 * NORMS * TOKENS + half_a_product * (7 * (1 + beyond_the_mask) - 6)
    assert flops == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="does not tell how often it turns; pass loop_turns"):
        traced(attention="blocked")


def test_the_count_is_nearly_that_of_the_compiler():
    """Of one layer, which XLA need not loop over. It counts what is no product too: 3 %."""
    model = dataclasses.replace(MODEL, num_layers=1)
    program, flops = traced(model, dtype="float32", attention="xla")
    with jax.set_mesh(program.mesh):
        shapes = program.state_shapes, program.frozen_shapes, program.batch_shapes(ROWS)
        compiled = program.step.lower(*shapes).compile()  # pyright: ignore[reportFunctionMemberAccess]
    assert " while(" not in compiled.as_text()
    assert flops < compiled.cost_analysis()["flops"] < 1.03 * flops


def test_a_conditional_counts_its_largest_branch_and_a_convolution_its_windows():
    x = jnp.ones((4, 4))

    def branches(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert program_flops(jax.make_jaxpr(branches)(x)) == 2 * 2 * 4**3
    image, kernel = jnp.ones((1, 3, 10, 10)), jnp.ones((5, 3, 2, 2))
    convolution = jax.make_jaxpr(lambda x, y: jax.lax.conv(x, y, (1, 1), "VALID"))(image, kernel)
    assert program_flops(convolution) == 2 * (5 * 9 * 9) * (3 * 2 * 2)


def test_a_kernel_counts_as_it_says_and_one_that_says_nothing_is_refused():
    def copy(source: Any, target: Any) -> None:
        target[...] = source[...]

    def call(estimate: pallas.CostEstimate | None) -> Any:
        shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
        run = pallas.pallas_call(copy, out_shape=shape, cost_estimate=estimate, name="mystery", interpret=True)
        return jax.make_jaxpr(run)(jnp.ones((8, 128)))

    estimate = pallas.CostEstimate(flops=12, transcendentals=0, bytes_accessed=0)
    assert program_flops(call(estimate)) == 12
    with pytest.raises(ValueError, match="the kernel mystery gives no cost estimate"):
        program_flops(call(None))


def test_what_nothing_reads_is_not_counted():
    def wasteful(x: jax.Array) -> jax.Array:
        _ = x @ x
        return x @ x[:, :1]

    assert program_flops(jax.make_jaxpr(wasteful)(jnp.ones((4, 4)))) == 2 * 4 * 4
