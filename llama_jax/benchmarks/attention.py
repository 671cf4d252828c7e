"""`benchmark attention`: every implementation of attention that runs on the device at hand, at the shapes of a config,
forward and backward."""

from typing import Any, get_args

import jax

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import say
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh, platform
from llama_jax.model.attention.choice import Implementation, Shapes, choose, problem_of
from llama_jax.runs import measured_attention

_INTERPRETED = ("splash", "triton")
"""What a CPU runs step by step, so that its time says nothing."""


def measure_attention(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds of one layer's attention over a microbatch and its gradients, by implementation, or why none."""
    run, device = config.run, jax.local_devices()[0]
    rows = run.training.batch_size // run.training.microbatches
    shapes = Shapes.of_whole_rows(run.model.architecture, run.compute, rows, run.data.sequence_length)
    with jax.set_mesh(make_mesh(MeshConfig(), [device])):
        refused = {name: reason for name in get_args(Implementation) if (reason := problem_of(name, shapes))}
        if platform() == "cpu":
            refused |= dict.fromkeys(_INTERPRETED, "is interpreted by a CPU, which says nothing of its speed")
        names = [name for name in get_args(Implementation) if name not in refused]
        measured_attention.measure_attention(shapes)
        chosen = choose(run.compute.attention, shapes).name
    measured = measured_attention.measured(shapes, names, refused, device)
    # As the formula of `model/flops.py` counts a layer: six for each query, key it sees, and number of a head.
    flops = 6 * shapes.rows * shapes.num_heads * shapes.head_size * shapes.query_length * shapes.key_length
    found: dict[str, Any] = {}
    for name, seconds in measured.seconds.items():
        found[name] = {"seconds": seconds, "model_flops_per_second": flops / seconds}
        mark = ", what is chosen" if name == chosen else ""
        say(config, f"{name:>8}: {seconds * 1e3:,.3f} ms, {flops / seconds / 1e12:.2f} TFLOP/s{mark}")
    for name, reason in measured.refused.items():
        found[name] = {"reason": reason}
        say(config, f"{name:>8}: {reason}")
    return {"shapes": shapes._asdict(), "chosen": chosen, "implementations": found}
