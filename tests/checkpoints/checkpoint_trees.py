"""Small trees whose values are known from the step, for the tests of checkpoints."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.saving import Checkpoints

PyTree = Any


def mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("fsdp",))


def values(step: int) -> dict[str, PyTree]:
    """The items of a step as numpy arrays: float32, bfloat16 and int32 leaves, and a tree with named tuples."""
    draw = np.random.default_rng(step)
    params = {
        "embed": draw.standard_normal((16, 8), np.float32),
        "layers": {
            "mlp": {"kernel": draw.standard_normal((2, 8, 24), np.float32)},
            "norm": draw.standard_normal((2, 8), np.float32).astype(jnp.bfloat16),
        },
    }
    optimizer = jax.tree.map(np.asarray, optax.adamw(1e-3).init(jax.tree.map(jnp.asarray, params)))
    noise = [draw.standard_normal(leaf.shape).astype(leaf.dtype) + step for leaf in jax.tree.leaves(optimizer)]
    return {"params": params, "optimizer": jax.tree.unflatten(jax.tree.structure(optimizer), noise)}


def sharding(shape: tuple[int, ...], devices: int) -> NamedSharding:
    split = [axis for axis, length in enumerate(shape) if length % devices == 0]
    names = ["fsdp" if axis == split[-1] else None for axis in range(len(shape))] if split else []
    return NamedSharding(mesh(devices), PartitionSpec(*names))


def arrays(step: int, devices: int = 1) -> dict[str, PyTree]:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf.shape, devices)), values(step))


def targets(devices: int = 1, items: tuple[str, ...] = ("params", "optimizer")) -> dict[str, PyTree]:
    def target(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf.shape, devices))

    tree = values(0)
    return {item: jax.tree.map(target, tree[item]) for item in items}


def files(step: int) -> dict[str, bytes]:
    return {"model/config.json": b'{"layers": 2}', "data/streams-0-of-1.json": json.dumps({"position": step}).encode()}


def same(found: Mapping[str, PyTree], step: int) -> bool:
    """Whether every leaf has the bits that were saved at a step."""
    expected = values(step)
    return all(
        np.asarray(x).dtype == y.dtype and np.asarray(x).tobytes() == y.tobytes()
        for item in found
        for x, y in zip(jax.tree.leaves(found[item]), jax.tree.leaves(expected[item]), strict=True)
    )


def save_steps(directory: Any, *steps: int, keep_last: int = 99, devices: int = 1) -> Checkpoints:
    checkpoints = Checkpoints(directory, CheckpointConfig(keep_last=keep_last), say=print)
    for step in steps:
        checkpoints.save(step, arrays(step, devices), files(step), {"tokenizer": "abc"})
    checkpoints.wait()
    return checkpoints
