"""Trees by path, and fingerprints that do not depend on the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.core import tree

TREE = {"layers": {"up": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.zeros(2)}}, "head": jnp.ones(5)}


def test_split_and_join_are_inverse() -> None:
    selected, rest = tree.split(TREE, lambda path: "up" in path)
    assert set(tree.flatten(selected)) == {"layers/up/kernel"}
    assert set(tree.flatten(rest)) == {"layers/norm/scale", "head"}
    joined = tree.join(selected, rest)
    assert jax.tree.structure(joined) == jax.tree.structure(TREE)


def test_joining_the_same_leaf_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="same path"):
        tree.join(TREE, {"head": jnp.ones(5)})


def test_size_and_cast() -> None:
    assert tree.size(TREE) == 13
    cast = tree.cast({"a": jnp.ones(2), "b": jnp.ones(2, jnp.int32)}, jnp.dtype("bfloat16"))
    assert (cast["a"].dtype, cast["b"].dtype) == (jnp.bfloat16, jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_fingerprint_is_the_same_on_any_mesh(dtype: str) -> None:
    array = jnp.asarray(np.random.default_rng(0).standard_normal((64, 16)) * 100).astype(dtype)
    found = set()
    for count, spec in ((1, ("x",)), (4, ("x",)), (8, ("x",)), (8, (None, "x"))):
        mesh = Mesh(np.array(jax.devices()[:count]), ("x",))
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        found.add(tuple(np.asarray(tree.fingerprints({"w": placed})["w"]).tolist()))
    assert len(found) == 1


def test_fingerprint_sees_every_flipped_bit_and_swapped_element() -> None:
    values = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    clean = np.asarray(tree.fingerprints(jnp.asarray(values)))
    random = np.random.default_rng(2)
    for _ in range(200):
        bits = values.copy().view(np.uint32)
        bits[random.integers(256)] ^= np.uint32(1) << np.uint32(random.integers(32))
        assert (np.asarray(tree.fingerprints(jnp.asarray(bits.view(np.float32)))) != clean).any()
    swapped = values.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert (np.asarray(tree.fingerprints(jnp.asarray(swapped))) != clean).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "bool"])
@pytest.mark.parametrize("shape", [(60,), (12, 5), (4, 3, 5)])
def test_fingerprints_of_parts_add_up_to_that_of_the_whole(dtype: str, shape: tuple[int, ...]) -> None:
    leaf = np.asarray(jnp.asarray(np.random.default_rng(3).standard_normal(shape), dtype))
    whole = np.asarray(tree.fingerprints(jnp.asarray(leaf)))
    for rows in (1, 3, 4):
        words = np.zeros(2, np.uint32)
        for first in range(0, shape[0], rows):
            words += tree.part_fingerprint(leaf[first : first + rows], leaf[:first].size)
        assert (words == whole).all()
    assert (tree.part_fingerprint(leaf, 1) != whole).all()


def test_places_are_counted_modulo_2_to_the_32() -> None:
    part = np.arange(1, 6, dtype=np.float32)
    across = tree.part_fingerprint(part, 2**32 - 2)
    parts = tree.part_fingerprint(part[:2], 2**32 - 2) + np.asarray(tree.fingerprints(jnp.asarray(part[2:])))
    assert (across == parts).all()
