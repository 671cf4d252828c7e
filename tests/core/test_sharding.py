"""The table of axes: what does not fit is refused by name."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh


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
    with pytest.raises(UserError, match=r"axis 'embed' of up/kernel has size 12, not divisible by 8 devices"):
        sharding.shardings_of(mesh, shapes, {"up": {"kernel": PartitionSpec("embed", "mlp")}})
