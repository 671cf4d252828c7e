"""Traces read into the operations that take the time."""

import jax
import jax.numpy as jnp
import pytest

from llama_jax.benchmarks.heaviest import Event, own_times, profiled, sources_of


def test_an_operation_has_the_time_that_those_within_it_leave() -> None:
    loop, first, inner, second, after = (
        Event("loop", 0, 100),
        Event("first", 10, 40),
        Event("inner", 20, 5),
        Event("second", 50, 30),
        Event("after", 100, 7),
    )
    found = {event.name: time for event, time in own_times([after, second, inner, loop, first])}
    assert found == {"loop": 30, "first": 35, "inner": 5, "second": 30, "after": 7}


def test_operations_are_named_by_what_they_were_made_for() -> None:
    line = (
        '  %fusion.3 = bf16[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(step)/jvp(Llama)/while/body/mlp/mul"}'
    )
    assert sources_of(f"ENTRY %main {{\n{line}\n}}") == {"fusion.3": "jit(step)/jvp(Llama)/mlp/mul"}


def test_the_heaviest_operation_of_a_program_is_told_with_its_turns() -> None:
    @jax.jit
    def program(x, weight):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ weight), x)

    x = jnp.ones((256, 256))
    compiled = program.lower(x, x).compile()
    found = profiled(lambda: [compiled(x, x).block_until_ready() for _ in range(2)], 2, compiled.as_text())
    operations = found["operations"]
    assert found["steps"] == 2 and 2 <= len(operations) <= 10
    assert [each["seconds"] for each in operations] == sorted((each["seconds"] for each in operations), reverse=True)
    assert sum(each["share"] for each in operations) == pytest.approx(1)
    assert sum(each["seconds"] for each in operations) == pytest.approx(found["busy_seconds"])
    product = next(each for each in operations if "dot_general" in each["source"])
    assert product["calls"] == 5 and product["seconds"] > 0
