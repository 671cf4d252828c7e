"""The mesh: sizes that do not make the devices are refused by name."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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


ASKING = """
import sys, jax
from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.mesh import all_devices
for platform in sys.argv[1:]:
    jax.config.update("jax_platforms", platform)
    try:
        print(all_devices()[0].platform)
    except CannotGoOnError as error:
        print(error)
"""


def test_a_platform_that_is_not_there_is_named_in_one_line() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    platforms = ["cdua", "rocm", "cuda", "cuda,cpu"]
    result = subprocess.run(
        [sys.executable, "-c", ASKING, *platforms], env=environment, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    for platform, line in zip(platforms[:3], lines[:3], strict=True):
        assert line.startswith(f"JAX_PLATFORMS={platform}: ") and line.endswith("; unset it to take what there is")
    assert "'cdua' is not in the list of known backends: ['cpu'" in lines[0]
    assert "Traceback" not in result.stderr
