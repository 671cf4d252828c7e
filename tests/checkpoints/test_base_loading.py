"""A base in any storage type is what the whole model would be in it, read without ever having the model twice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from small_weights import FLOAT32, SmallWeights, of_kind
from sweeps import some

from llama_jax.checkpoints.base_loading import base_from_weights
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.formats.weights import WeightName
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.checkpoints.steps import restoring
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError
from llama_jax.core import sharding, tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.quantized import store_as, stored_axes

STORES = ("float32", "bfloat16", "int8", "nf4")
SIZE: dict[str, Any] = {"width": 64, "mlp_width": 128, "num_layers": 6, "head_size": 16}


def opened(path: Path, store: Any, devices: int = 1) -> Any:
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return open_params(ModelReference(str(path)), ComputeConfig(), say=pytest.fail, store=store, identify=False)


@pytest.fixture(scope="module", params=some(["hf", "run"], ["hf"]))
def base(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    if request.param == "run":
        write_orbax(epath.Path(folder), of_kind(FLOAT32, **SIZE), dtype=None)
    else:
        folder.mkdir()
        write_hugging_face(folder, of_kind(FLOAT32, **SIZE))
    return folder


@pytest.mark.parametrize("devices", some([1, 8], [8]))
@pytest.mark.parametrize("store", some(STORES, ("nf4",)))
def test_each_parameter_is_stored_as_the_whole_would_be(base, store, devices) -> None:
    whole = opened(base, "float32")
    expected = tree.flatten(jax.jit(store_as, static_argnums=1)(whole.params, store))
    found = opened(base, store, devices)
    leaves = tree.flatten(found.params)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        assert leaf.dtype == expected[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(expected[path], np.float32), path)
    mesh = jax.tree.leaves(found.params)[0].sharding.mesh
    places = sharding.shardings_of(mesh, found.params, stored_axes(found.model.axes, found.params))
    assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == places


def test_the_type_is_that_of_computation_where_none_is_asked_for(base) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        compute = ComputeConfig(dtype="bfloat16")
        found = open_params(ModelReference(str(base)), compute, say=pytest.fail, identify=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("bfloat16")}


@dataclass(frozen=True)
class Watched:
    """Weights that look at what is in memory whenever one of them is read."""

    weights: SmallWeights
    look: Callable[[], None]
    files: Mapping[str, bytes] = field(default_factory=dict)
    source: str = "watched"

    @property
    def config(self) -> LlamaConfig:
        return self.weights.config

    def dtype(self, name: WeightName) -> np.dtype:
        return self.weights.dtype(name)

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        self.look()
        return self.weights.read(name, layer)


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.parametrize("store", some(["bfloat16", "int8", "nf4"], ["nf4"]))
@pytest.mark.slow
def test_beside_what_is_stored_there_is_one_tensor(store) -> None:
    before, most = live_bytes(), 0

    def look() -> None:
        nonlocal most
        most = max(most, live_bytes() - before)

    weights = Watched(of_kind(FLOAT32, **SIZE), look)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        _, params, identity = base_from_weights(weights, "watched", ComputeConfig(), store, True)
    leaves = jax.tree.leaves(params)
    assert identity is not None
    largest_tensor = 4 * 64 * 128
    largest_leaf = max(leaf.nbytes for leaf in leaves)
    assert most <= sum(leaf.nbytes for leaf in leaves) + largest_leaf + largest_tensor
    assert most < 0.7 * 4 * tree.size(params)


@pytest.mark.parametrize("store", some(["bfloat16", "nf4"], ["nf4"]))
@pytest.mark.slow
def test_of_a_run_one_parameter_is_read_at_a_time(tmp_path, monkeypatch, store) -> None:
    run = tmp_path / "run"
    write_orbax(epath.Path(run), of_kind(FLOAT32, **SIZE), dtype=None)
    before, most = live_bytes(), 0
    whole = restoring.Verified.restore_leaf

    def watched(*arguments: Any) -> Any:
        nonlocal most
        leaf = whole(*arguments)
        most = max(most, live_bytes() - before)
        return leaf

    monkeypatch.setattr(restoring.Verified, "restore_leaf", watched)
    leaves = jax.tree.leaves(opened(run, store).params)
    assert most <= sum(leaf.nbytes for leaf in leaves) + 4 * 6 * 64 * 128


def test_a_parameter_that_is_not_what_was_saved_is_found(tmp_path, monkeypatch) -> None:
    """Behind the hashes of the files, which verify."""
    run = tmp_path / "run"
    write_orbax(epath.Path(run), of_kind(FLOAT32), dtype=None)
    monkeypatch.setattr(restoring, "fingerprints", lambda leaves: {path: jnp.zeros(2, jnp.uint32) for path in leaves})
    with pytest.raises(CheckpointDamagedError, match="params/embedding/table: fingerprint differs"):
        opened(run, "nf4")
