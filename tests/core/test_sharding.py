"""The mesh and the table: what does not fit is refused by name."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llama_jax.core import placing, sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh


def test_minus_one_takes_the_remaining_devices() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}


def test_a_mesh_of_another_number_of_devices_is_refused() -> None:
    with pytest.raises(UserError, match="data 1 x fsdp 3 x sequence 1 x tensor 1 does not make 8 devices"):
        make_mesh(MeshConfig(fsdp=3))


def test_only_one_axis_may_be_what_is_left() -> None:
    with pytest.raises(UserError, match="only one axis can be -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_stages_are_axes_of_the_mesh_that_make_up_fsdp() -> None:
    mesh = make_mesh(MeshConfig(fsdp=8, fsdp_stages=(2, 4)))
    assert dict(mesh.shape) == {"data": 1, "fsdp_0": 2, "fsdp_1": 4, "sequence": 1, "tensor": 1}
    assert sharding.mesh_axes(("batch", "length", "embed"), mesh) == PartitionSpec(
        ("fsdp_0", "fsdp_1"), None, ("fsdp_0", "fsdp_1")
    )
    with pytest.raises(UserError, match=r"mesh\.fsdp_stages: \[2, 3\] does not make mesh\.fsdp 8"):
        make_mesh(MeshConfig(fsdp=8, fsdp_stages=(2, 3)))
    with pytest.raises(UserError, match=r"mesh\.fsdp_stages: \[8\] must be two or more sizes"):
        MeshConfig(fsdp=8, fsdp_stages=(8,))


def test_an_unknown_logical_axis_names_the_parameter() -> None:
    mesh = make_mesh(MeshConfig())
    shapes = {"new": {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}}
    with pytest.raises(KeyError, match="new/kernel has a logical axis 'embd'"):
        sharding.shardings_of(mesh, shapes, {"new": {"kernel": PartitionSpec("embd", None)}})


def test_a_dimension_the_mesh_does_not_divide_is_refused_by_name() -> None:
    mesh = make_mesh(MeshConfig(fsdp=8))
    shapes = {"up": {"kernel": jax.ShapeDtypeStruct((12, 8), jnp.float32)}}
    with pytest.raises(UserError, match=r"8 devices do not divide the 12 of axis 'embed' of up/kernel"):
        sharding.shardings_of(mesh, shapes, {"up": {"kernel": PartitionSpec("embed", "mlp")}})


def test_placed_batch_is_split_by_row_and_counts_its_weights() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = {
        name: np.arange(8 * 4, dtype=np.int32).reshape(8, 4)
        for name in ("tokens", "targets", "segment_ids", "positions")
    }
    weights = np.zeros((8, 4), np.float32)
    weights[:3] = 1
    batch = placing.place_batch(mesh, rows | {"loss_weights": weights}, 8)
    assert float(batch.normalizer) == 12
    assert {shard.data.shape for shard in batch.tokens.addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(batch.tokens, rows["tokens"])


def test_a_batch_of_padding_has_a_normaliser_above_zero() -> None:
    mesh = make_mesh(MeshConfig(fsdp=8))
    names = ("tokens", "targets", "segment_ids", "positions", "loss_weights")
    empty = {name: np.zeros((8, 2), np.float32 if name == "loss_weights" else np.int32) for name in names}
    assert float(placing.place_batch(mesh, empty, 8).normalizer) == 1.0


def test_batch_that_the_mesh_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="12 rows are not divided by the 8 devices"):
        placing.local_rows(make_mesh(MeshConfig(fsdp=8)), 12)


@dataclass(frozen=True)
class Gpu:
    """A GPU as a mesh sees it: JAX gives those of each machine a slice of their own."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def test_fsdp_spans_machines_with_gpus() -> None:
    gpus = [Gpu(number, number // 8, number // 8) for number in range(16)]
    assert make_mesh(MeshConfig(fsdp=16), gpus).devices.shape == (1, 16, 1, 1)
