"""A bit that changes on one device is seen, wherever it is, and said of the device that it changed on."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import flip_a_bit
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.core.replicas import ReplicaChecks, ReplicasDifferError, check_replicas

MESH = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))


def placed(array: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    return jax.device_put(array, NamedSharding(MESH, PartitionSpec(*axes)))


@pytest.fixture(scope="module")
def arrays() -> dict[str, jax.Array]:
    return {
        "whole": placed(jnp.ones((2, 4, 8), jnp.bfloat16)),
        "by two": placed(jnp.arange(64.0).reshape(8, 8), None, ("tensor", "fsdp")),
        "by one": placed(jnp.arange(32, dtype=jnp.int8), "fsdp"),
        "number": placed(jnp.int32(3)),
        "of each its own": placed(jnp.arange(8.0), ("data", "fsdp", "tensor")),
    }


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("whole", 6, "device 6 of process 0"),
        ("by two", 5, "device 1 of process 0, device 5 of process 0"),  # of two nothing tells which is wrong
        ("by one", 3, "device 3 of process 0"),
        ("number", 0, "device 0 of process 0"),
    ],
)
def test_a_bit_that_changed_on_a_device_is_seen(arrays, name, device, said) -> None:
    check_replicas(arrays, 30, 20)
    flip_a_bit(arrays[name], device, byte=arrays[name].addressable_shards[0].data.nbytes - 1, bit=6)
    try:
        message = f"^step 30: replicas of the same array differ, in {name}: {said}; a device .* from step 20 or before"
        with pytest.raises(ReplicasDifferError, match=message):
            check_replicas(arrays, 30, 20)
    finally:
        flip_a_bit(arrays[name], device, byte=arrays[name].addressable_shards[0].data.nbytes - 1, bit=6)


def test_what_each_device_holds_a_part_of_is_not_compared_and_nothing_is_where_it_is_not_asked_for(arrays) -> None:
    check_replicas({"own": arrays["of each its own"], "elsewhere": jnp.ones(3)}, 1, 0)
    flip_a_bit(arrays["number"], 0)
    try:
        for every, step in ((0, 10), (10, 9)):
            ReplicaChecks(every, 0).after(step, arrays)
        checks = ReplicaChecks(10, 3)
        with pytest.raises(ReplicasDifferError, match=re.escape("go on from step 3 or before")):
            checks.after(10, arrays)
    finally:
        flip_a_bit(arrays["number"], 0)
