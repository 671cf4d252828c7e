"""The mesh: sizes that do not make the devices are refused by name."""

from dataclasses import dataclass

import pytest

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
