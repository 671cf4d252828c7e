"""`benchmark decode --dry_run`: what decoding would hold and read, and its program compiled for the devices that are
here, without weights."""

import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.decoding.engine_side import decoding_sizes
from llama_jax.benchmarks.decoding.roofline import least_seconds
from llama_jax.benchmarks.results import gigabytes, say
from llama_jax.core import sharding
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import start_up
from llama_jax.model.llama import LanguageModel, language_model

Lower = Callable[[LanguageModel, Mesh, int, int], Any]
"""The program that decodes so many rows of so many tokens, lowered, see `planning.decoding.lowered_decode`."""


def describe_decoding(config: BenchmarkConfig, lower: Lower) -> None:
    """Print it.

    Raises:
        UserError: weights are named, which are not opened here, or the mesh divides the model or the rows badly.
    """
    if config.weights is not None or config.against is not None:
        raise UserError("--dry_run: is of random weights of the architecture model; leave out --weights and --against")
    say(config, start_up(config.run.distributed))
    mesh = make_mesh(config.run.mesh)
    model = language_model(config.run.model.architecture, config.run.compute)
    sizes = decoding_sizes(config, model)
    say(
        config,
        f"model:    {config.run.model.size}, {sizes['parameters']:,} parameters, {model.compute.dtype}: weights "
        f"{gigabytes(sizes['weights_bytes'])}, caches of {config.decode_rows} x {config.decode_tokens} tokens "
        f"{gigabytes(sizes['cache_bytes'])}",
    )
    kind = mesh.devices.flat[0].device_kind
    for count in config.streams:
        step, least = least_seconds(config, {**sizes, "device_kind": kind, "devices": mesh.size}, count)
        bound = "" if least is None else f"; at most {count / least:,.0f} tokens/s by the maker's figures of {kind}"
        say(config, f"a step:   {count} x 1 token reads {gigabytes(step)}{bound}")
    say(config, "compiling…")
    started = time.perf_counter()
    lowered = lower(model, mesh, config.decode_rows, config.decode_tokens)
    with jax.set_mesh(mesh):
        account = lowered.traced.lower().compile().memory_analysis()
    held = {name: sharding.bytes_on_a_device(shapes) for name, shapes in lowered.held.items()}
    say(
        config,
        f"compiled: in {time.perf_counter() - started:.1f} s; a device holds "
        + ", ".join(f"{name} {gigabytes(size)}" for name, size in held.items())
        + f", and {gigabytes(account.temp_size_in_bytes)} more within a step",
    )
