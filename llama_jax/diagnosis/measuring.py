"""How fast one device multiplies matrices and reads its memory."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, Int

_LONGEST_SECONDS, _FEWEST = 0.25, 3
"""A repetition lasts about so long at the most, and there are so many at least."""


class Rate(NamedTuple):
    """Repetitions of the same work, as rates: FLOP/s or bytes/s."""

    median: float
    least: float
    most: float
    repetitions: int
    peak: float | None = None
    """The most that the maker says; None: not known."""


def matmul_rate(dtype: str, size: int, seconds: float) -> Rate:
    """FLOP/s of square matrix products, one after the other, on the first device of this process.

    As in training, the precision is JAX's default one: on TPUs, and on GPUs that have TensorFloat-32, float32 matrices
    are multiplied with less.

    Args:
        size: rows and columns.
        seconds: to spend, about, beside compiling.
    """
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    # Of unit gain, so that a long chain of products stays in range.
    weight = jax.random.normal(jax.random.key(1), (size, size), dtype) * size**-0.5

    @jax.jit
    def products(count: Int[Array, ""], x: Array, weight: Array) -> Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ weight, x)

    return measured(lambda count: products(count, x, weight), 2.0 * size**3, seconds)


def memory_rate(size: int, seconds: float) -> Rate:
    """Bytes/s of reading an array and writing it back, changed, on the first device of this process.

    Args:
        size: bytes of the array.
    """

    # In place: a result somewhere else would be memory that the system hands out page by page.
    @functools.partial(jax.jit, donate_argnums=1)
    def passes(count: Int[Array, ""], x: Array, factor: Float[Array, ""]) -> Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x * factor + 1.0, x)

    x = jnp.ones(size // 4, jnp.float32)

    def run(count: int) -> Array:
        nonlocal x
        x = passes(count, x, 0.5)
        return x

    return measured(run, 2.0 * x.nbytes, seconds)


def measured(run: Callable[[int], Array], work: float, seconds: float) -> Rate:
    """Time `run(count)`, which does `work` that many times.

    `count` is chosen so that starting a program weighs little: a repetition lasts a part of `seconds`.
    """

    def timed(count: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(run(count))
        return time.perf_counter() - started

    timed(1)  # compiles
    count, wanted = 1, min(_LONGEST_SECONDS, seconds / (2 * _FEWEST))
    took = timed(count)
    while took < wanted / 2:
        count = max(2 * count, min(int(count * wanted / took), 16 * count))
        took = timed(count)
    ends, times = time.perf_counter() + seconds, [took]
    while len(times) < _FEWEST or time.perf_counter() + statistics.median(times) < ends:
        times.append(timed(count))
    rates = [count * work / took for took in times]
    return Rate(statistics.median(rates), min(rates), max(rates), len(rates))


def wrong_products(dtype: str, size: int = 256) -> str:
    """What is wrong in a product of small whole numbers, which has no rounding; nothing where all is right."""
    random = np.random.default_rng(0)
    left, right = random.integers(-8, 9, (2, size, size))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    got = np.asarray(product(jnp.asarray(left, dtype), jnp.asarray(right, dtype)))
    wrong = np.count_nonzero(got != left @ right)
    return f"{wrong} of {size * size} products of {dtype} numbers are wrong" if wrong else ""
