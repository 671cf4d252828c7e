"""`benchmark attention`: every implementation of attention that runs on the device at hand, at the shapes of a config,
forward and backward."""

from typing import Any, get_args

import jax
import jax.numpy as jnp

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import say
from llama_jax.benchmarks.turns import summary, timed
from llama_jax.core.arrays import Array
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention.choice import Implementation, Shapes, attention, choose


def measure_attention(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds of one layer's attention over a microbatch and its gradients, by implementation, or why none."""
    run = config.run
    shapes = Shapes.of_whole_rows(
        run.model.architecture,
        run.compute,
        run.training.batch_size // run.training.microbatches,
        run.data.sequence_length,
    )
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
        chosen = choose(run.compute.attention, shapes).name
        found = {name: _measured(config, name, shapes) for name in get_args(Implementation)}
    # As the formula of `model/flops.py` counts a layer: six for each query, key it sees, and number of a head.
    flops = 6 * shapes.rows * shapes.num_heads * shapes.head_size * shapes.query_length * shapes.key_length
    for name, each in found.items():
        if "reason" in each:
            say(config, f"{name:>8}: {each['reason']}")
            continue
        seconds = each["seconds"]
        each["model_flops_per_second"] = flops / seconds["median"]
        mark = ", what auto takes" if name == chosen else ""
        say(
            config,
            f"{name:>8}: {seconds['median'] * 1e3:,.3f} ms, noise ±{seconds['noise']:.1%}, "
            f"{each['model_flops_per_second'] / 1e12:.2f} TFLOP/s{mark}",
        )
    return {"shapes": shapes._asdict(), "chosen": chosen, "implementations": found}


def _measured(config: BenchmarkConfig, name: Implementation, shapes: Shapes) -> dict[str, Any]:
    try:
        choose(name, shapes)
    except UserError as error:
        return {"reason": str(error)}
    if jax.devices()[0].platform == "cpu" and name in ("splash", "triton"):
        return {"reason": "a CPU interprets it, which says nothing of its speed"}
    try:
        return {"seconds": _seconds(config, name, shapes)}
    except Exception as error:  # such as of memory, which is a result too
        return {"reason": str(error).splitlines()[0][:200]}


def _seconds(config: BenchmarkConfig, name: Implementation, shapes: Shapes) -> dict[str, Any]:
    rows, length, heads, size = shapes.rows, shapes.query_length, shapes.num_heads, shapes.head_size
    keys = jax.random.split(jax.random.key(0), 4)
    wide, narrow = (rows, length, heads, size), (rows, length, shapes.num_kv_heads, size)
    arrays = [
        jax.random.normal(key, shape, shapes.dtype)
        for key, shape in zip(keys, (wide, narrow, narrow, wide), strict=True)
    ]
    segments = jnp.ones((rows, length), jnp.int32)

    @jax.jit
    def both(query: Array, key: Array, value: Array, cotangent: Array) -> tuple[Array, ...]:
        def mixed(query: Array, key: Array, value: Array) -> Array:
            return attention(query, key, value, query_segments=segments, key_segments=segments, implementation=name)

        made, back = jax.vjp(mixed, query, key, value)
        return made, *back(cotangent)

    def turn(steps: int) -> None:
        jax.block_until_ready([both(*arrays) for _ in range(steps)])

    turn(config.warmup_steps)
    return summary([timed(turn, config.steps_per_turn) for _ in range(config.turns)])
