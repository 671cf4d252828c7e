"""The fastest implementation of attention on the GPUs at hand, measured once at the start of a run, on the shapes of
the run: a forward and a backward pass of each that can run."""

import functools
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Float
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.core.mesh import make_mesh, platform
from llama_jax.core.processes.distributed import from_main_process
from llama_jax.model.attention.choice import Shapes, attention, problem_of
from llama_jax.model.attention.fastest import Measured, fastest, remember, remembered

CANDIDATES = ("cudnn", "triton", "blocked")
_REFERENCE = "blocked"
"""What the results of the others are compared with: it is plain JAX."""
_DOCUMENTS = 4
"""Of a row that is measured with."""
_TOLERANCE = {"bfloat16": 2**-5, "float32": 2**-8}
"""By which results may differ from those of `blocked`, in parts of the largest; products of float32 may be made of
TensorFloat-32, which has 11 bits."""
_TURNS, _CALLS = 5, 4


def measure_attention(shapes: Shapes) -> None:
    """Let `auto` go by what is fastest here, if the mesh in use is one of GPUs that are there, once for a kind of
    model. What the first process of a job finds, all go by, and so does every later run with its cache of compiled
    programs.

    Args:
        shapes: those of a microbatch on the whole mesh.
    """
    if platform() != "gpu" or remembered(shapes.kind):
        return
    here = [device for device in jax.sharding.get_mesh().devices.flat if device in jax.local_devices()]
    refused = {name: reason for name in CANDIDATES if (reason := problem_of(name, shapes))}
    if here and _REFERENCE not in refused:
        make = functools.partial(_kept, on_a_device(shapes), refused, here[0])
        seconds, failed = json.loads(from_main_process(make))
        if seconds:  # else `auto` does without, as where nothing can be measured
            remember(shapes.kind, Measured(seconds, failed))


def on_a_device(shapes: Shapes) -> Shapes:
    """What each device of the mesh in use computes by itself. Where rows are split, that is whole rows of fewer
    heads."""
    parts = sharding.size_of("length")
    heads, kv_heads = (
        count // sharding.size_of(axis)
        for count, axis in ((shapes.num_heads, "heads"), (shapes.num_kv_heads, "kv_heads"))
    )
    rows = shapes.rows // sharding.size_of("batch")
    return shapes._replace(rows=rows, num_heads=heads // parts, num_kv_heads=max(kv_heads // parts, 1))


def _kept(shapes: Shapes, refused: dict[str, str], device: Any) -> bytes:
    """What the cache has of these shapes on such a device with these libraries; else measured, and put there. As JSON:
    seconds, and reasons, by name."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    known = [*shapes, refused, device.device_kind, device.client.platform_version, jax.__version__]
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    path = None if folder is None else epath.Path(folder) / "attention" / f"{name}.json"
    if path is not None and path.exists():
        return path.read_bytes()
    found = measured(shapes, [name for name in CANDIDATES if name not in refused], refused, device)
    result = json.dumps([dict(found.seconds), dict(found.refused)]).encode()
    if path is not None and found.seconds:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, result)
    return result


def measured(shapes: Shapes, names: Sequence[str], refused: dict[str, str], device: Any) -> Measured:
    """Seconds of a forward and a backward pass of each implementation on a device. One whose results are not those of
    `blocked` is refused."""
    with jax.set_mesh(make_mesh(MeshConfig(), [device])):
        arrays = jax.jit(_inputs, static_argnums=0)(shapes)
        expected = functools.cache(lambda: _both_passes(_REFERENCE)(*arrays))

        def seconds(name: str) -> float:
            run = _both_passes(name)
            _check(run(*arrays), expected(), _TOLERANCE[shapes.dtype])
            return statistics.median(_seconds_of(run, arrays) for _ in range(_TURNS))

        return fastest({name: functools.partial(seconds, name) for name in names}, refused)


def _inputs(shapes: Shapes) -> list[Array]:
    """Query, key, value, the gradient of what is mixed of them, and the documents of packed rows."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (shapes.num_heads, shapes.num_kv_heads, shapes.num_kv_heads, shapes.num_heads)
    sizes = [(shapes.rows, shapes.query_length, count, shapes.head_size) for count in counts]
    ids = jnp.arange(shapes.query_length) * _DOCUMENTS // shapes.query_length
    drawn = [jax.random.normal(key, size).astype(shapes.dtype) for key, size in zip(keys, sizes, strict=True)]
    return [*drawn, jnp.broadcast_to(ids, (shapes.rows, shapes.query_length))]


def _both_passes(name: str) -> Callable[..., tuple[Array, ...]]:
    def run(query: Array, key: Array, value: Array, gradient: Array, ids: Array) -> tuple[Array, ...]:
        def mix(*arrays: Array) -> Array:
            return attention(*arrays, query_segments=ids, key_segments=ids, implementation=name)

        mixed, gradients = jax.vjp(mix, query, key, value)
        return mixed, *gradients(gradient)

    return jax.jit(run)


def _check(found: Sequence[Array], expected: Sequence[Array], tolerance: float) -> None:
    errors = dict(zip(("output", "query", "key", "value"), jax.jit(_errors)(found, expected).tolist(), strict=True))
    for what, error in errors.items():
        if not error <= tolerance:
            of = "" if what == "output" else "gradient of the "
            raise UserError(f"the {of}{what} differs from that of {_REFERENCE} by {error:.2g} of the largest")


def _errors(found: Sequence[Array], expected: Sequence[Array]) -> Float[Array, "arrays"]:
    pairs = [
        (array.astype(jnp.float32), exact.astype(jnp.float32)) for array, exact in zip(found, expected, strict=True)
    ]
    return jnp.stack([jnp.max(jnp.abs(array - exact)) / jnp.max(jnp.abs(exact)) for array, exact in pairs])


def _seconds_of(run: Callable[..., Any], arrays: Sequence[Array]) -> float:
    started = time.perf_counter()
    jax.block_until_ready([run(*arrays) for _ in range(_CALLS)][-1])
    return (time.perf_counter() - started) / _CALLS
