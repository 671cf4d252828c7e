"""Bytes to and from memory, against XLA's own count where it is right, and against counts made by hand."""

import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from llama_jax.planning.compiled.memory_traffic import memory_traffic

SIDE = 512
MATRIX = 4 * SIDE**2
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
STACK = jax.ShapeDtypeStruct((16, SIDE, SIDE), jnp.float32)
INDEX = jax.ShapeDtypeStruct((), jnp.int32)
INDICES = jax.ShapeDtypeStruct((8,), jnp.int32)


def compiled(function, *shapes, **settings) -> Any:
    return jax.jit(function, **settings).lower(*shapes).compile()


def gradient(x, y):
    return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ y) @ y))(x)


@pytest.mark.parametrize(
    ("function", "shapes", "settings"),
    [
        (lambda x, y: x + y, (X, X), {}),
        (lambda x, y: x @ y, (X, X), {}),
        (lambda x, y: jax.nn.silu(x @ y) * (x @ y.T), (X, X), {}),
        (lambda x: jax.nn.softmax(x, axis=-1), (X,), {}),
        (gradient, (X, X), {}),
        (lambda stack, i: jax.lax.dynamic_index_in_dim(stack, i).astype(jnp.bfloat16), (STACK, INDEX), {}),
        (jax.lax.dynamic_update_index_in_dim, (STACK, X, INDEX, 0), {"static_argnums": 3, "donate_argnums": 0}),
    ],
)
def test_straight_programs_move_what_xla_says(function, shapes, settings):
    program = compiled(function, *shapes, **settings)
    assert memory_traffic(program.as_text()) == pytest.approx(program.cost_analysis()["bytes accessed"], rel=1e-3)


def test_a_product_moves_its_operands_and_its_result():
    assert memory_traffic(compiled(lambda x, y: x @ y, X, X).as_text()) == 3 * MATRIX


def test_looking_rows_up_touches_no_other_rows():
    """(XLA counts the whole table.)"""
    text = compiled(lambda x, i: jnp.take(x, i, axis=0, mode="clip"), X, INDICES).as_text()
    row = 4 * SIDE
    assert 2 * 8 * row <= memory_traffic(text) <= 2 * 8 * row + 100


def test_a_loop_moves_what_its_body_does_in_each_turn():
    """A turn reads one matrix of the stack, to copy it, and the copy, and reads and writes rows (twice: tanh apart)."""

    def layers(stack, rows):
        return jax.lax.scan(lambda rows, layer: (jnp.tanh(rows @ layer), None), rows, stack)[0]

    rows = jax.ShapeDtypeStruct((8, SIDE), jnp.float32)
    short, long = (
        memory_traffic(compiled(layers, jax.ShapeDtypeStruct((turns, SIDE, SIDE), jnp.float32), rows).as_text())
        for turns in (4, 12)
    )
    assert 3 * MATRIX <= (long - short) / 8 <= 3.1 * MATRIX


def program(entry: str, *computations: str) -> str:
    body = textwrap.indent(textwrap.dedent(entry).strip(), "  ")
    others = "\n\n".join(textwrap.dedent(computation).strip() for computation in computations)
    return f"HloModule jit_step, num_partitions=8\n\n{others}\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


ON_CHIP, IN_MEMORY = "{0:T(128)S(1)}", "{0:T(128)}"


def test_what_is_on_the_chip_is_not_moved():
    text = program(f"""
        %p = f32[100]{IN_MEMORY} parameter(0)
        %s = (f32[100]{ON_CHIP}, f32[100]{IN_MEMORY}, u32[]{{:S(2)}}) copy-start(%p)
        %d = f32[100]{ON_CHIP} copy-done(%s)
        %n = f32[100]{ON_CHIP} negate(%d)
        ROOT %a = f32[100]{IN_MEMORY} add(%n, %d)
    """)
    assert memory_traffic(text) == 400 + 400


def test_the_steps_of_an_asynchronous_collective_move_it_once():
    """A gather of 50 to 400 floats in two fusions, beside each of which 10 floats are negated."""

    def step(name: str) -> str:
        return f"""
            %{name} (a: f32[50], b: f32[10]) -> (f32[10], f32[50], f32[400]) {{
              %a = f32[50]{IN_MEMORY} parameter(0)
              %b = f32[10]{IN_MEMORY} parameter(1)
              %g = f32[400]{IN_MEMORY} all-gather(%a), channel_id=4, dimensions={{0}}, frontend_attributes={{chain_id="0"}}, backend_config={{"async_collective_fusion_config":{{"flag_start":"2"}}}}
              %n = f32[10]{IN_MEMORY} negate(%b)
              ROOT %t = (f32[10]{IN_MEMORY}, f32[50]{IN_MEMORY}, f32[400]{IN_MEMORY}) tuple(%n, %a, %g)
            }}"""  # noqa: E501

    result = f"(f32[10]{IN_MEMORY}, f32[50]{IN_MEMORY}, f32[400]{IN_MEMORY})"
    text = program(
        f"""
        %p = f32[50]{IN_MEMORY} parameter(0)
        %q = f32[10]{IN_MEMORY} parameter(1)
        %f.1 = {result} fusion(%p, %q), kind=kOutput, calls=%one
        %again = f32[50]{IN_MEMORY} get-tuple-element(%f.1), index=1
        ROOT %f.2 = {result} fusion(%again, %q), kind=kOutput, calls=%two
        """,
        step("one"),
        step("two"),
    )
    assert memory_traffic(text) == 4 * (50 + 400) + 2 * 4 * (10 + 10)


def test_of_an_asynchronous_fusion_the_slice_counts_and_not_the_stack():
    """As XLA for GPU writes a slice that it takes of the weights of all layers, or puts among their activations."""
    put = """
        %put (stack: f32[32,10], at: s32[], row: f32[1,10]) -> f32[32,10] {
          %stack = f32[32,10] parameter(0)
          %at = s32[] parameter(1)
          %row = f32[1,10] parameter(2)
          ROOT %d = f32[32,10] dynamic-update-slice(%stack, %row, %at, %at)
        }"""
    text = program(
        """
        %p = f32[32,10] parameter(0)
        %q = s32[] parameter(1)
        %r = f32[1,10] parameter(2)
        %s = ((f32[32,10], s32[], f32[1,10]), f32[32,10], u32[]) fusion-start(%p, %q, %r), kind=kLoop, calls=%put
        ROOT %e = f32[32,10] fusion-done(%s)
        """,
        put,
    )
    assert memory_traffic(text) == 40 + 4 + 40


def test_of_a_conditional_the_branch_that_moves_most_counts():
    branch = "%{0} (x: f32[{1}]) -> f32[{1}] {{\n  %x = f32[{1}] parameter(0)\n  ROOT %n = f32[{1}] negate(%x)\n}}"
    text = program(
        "ROOT %c = f32[8] conditional(%p, %q, %r), true_computation=%few, false_computation=%many",
        branch.format("few", 10),
        branch.format("many", 30),
    )
    assert memory_traffic(text) == 2 * 30 * 4


def test_a_loop_that_does_not_tell_its_turns_needs_to_be_told():
    text = program(
        "ROOT %w = f32[10] while(%p), condition=%c, body=%b",
        "%c (x: f32[10]) -> pred[] {\n  ROOT %x = pred[] custom-call(%p)\n}",
        "%b (x: f32[10]) -> f32[10] {\n  %x = f32[10] parameter(0)\n  ROOT %n = f32[10] negate(%x)\n}",
    )
    assert memory_traffic(text, trip_count=3) == 3 * 80
    with pytest.raises(ValueError, match="the loop w does not tell its trip count"):
        memory_traffic(text)
