"""A batch that is waited for costs what the devices had nothing to do for, and no more."""

import contextlib
import time

import jax
import jax.numpy as jnp

from llama_jax.training.loop import _Devices


def test_a_batch_that_comes_while_a_step_is_made_costs_nothing() -> None:
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x @ x), x).sum())
    x = jnp.ones((400, 400))
    step(x).block_until_ready()
    with contextlib.closing(_Devices()) as devices:
        asked = time.perf_counter()
        devices.give({"loss": (loss := step(x))})
        assert devices.idle_seconds(since=asked) == 0.0
        loss.block_until_ready()
        made = time.perf_counter()
        time.sleep(0.05)
        idle = devices.idle_seconds(since=asked)
        assert 0.04 <= idle < time.perf_counter() - asked - (made - asked) / 2
        assert devices.idle_seconds(since=time.perf_counter()) < 0.01
