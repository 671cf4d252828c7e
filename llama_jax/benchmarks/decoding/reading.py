"""The least that decoding can take on a CPU: reading as many bytes, by every processor, and nothing else."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llama_jax.benchmarks.turns import Turn, processors, serve


def main() -> None:
    """Entry point of the process that reads, `turns.Side`; its task is a number of bytes."""
    serve(_prepare)


def _prepare(count: int) -> tuple[Turn, dict[str, Any]]:
    import numpy as np

    threads = processors()
    pool = ThreadPoolExecutor(threads)
    parts = np.array_split(np.ones(count // 4, np.int32), threads)

    def turn(times: int) -> None:
        for _ in range(times):
            # Of what NumPy does with an array this reads fastest: 31 GB/s on two cores on which a sum reads 17.
            list(pool.map(np.max, parts))

    turn(1)
    return turn, {}
