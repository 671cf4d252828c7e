"""What the makers say their chips can do at best. Knows no program; nothing here was measured.

Sources. TPU: Google Cloud's documentation of each generation (cloud.google.com/tpu/docs/v5e, …), and for the links and
the data-centre network, which are only given there for some, Austin et al. 2025, "How to Scale Your Model"
(jax-ml.github.io/scaling-book/tpus), whose links are a tenth slower than the documentation's. GPU: NVIDIA's data
sheets; NVLink, 25 GB/s a link and direction (50 of the fifth generation), from the same book (/gpus); the network of
NVIDIA's own DGX machines, which others need not have."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One JAX device: a chip, except on TPU v2 and v3, where it is one of the chip's two cores. None: not published, or
    not a property of the chip alone."""

    platform: Literal["tpu", "gpu"]
    flops: float
    """Dense bfloat16 FLOP/s."""
    memory_bytes: int
    memory_bandwidth: float
    """Bytes/s from and to the memory, both together."""
    usable_bytes: int | None = None
    """Memory that the compiler lets a program have, as libtpu 0.0.42 says when it refuses one that is too large."""
    link_bandwidth: float | None = None
    """TPU: bytes/s of one link between neighbours in one direction; a torus dimension has two of them a chip."""
    torus_dimensions: int | None = None
    """TPU: dimensions of the largest slice."""
    nvlink_bandwidth: float | None = None
    """GPU: bytes/s to the others of its machine in one direction, through switches."""
    network_bandwidth: float | None = None
    """Bytes/s of this device's share of the data-centre network in one direction."""
    shared_memory: int | None = None
    """GPU: bytes on the chip that one block of a kernel can have (CUDA C++ Programming Guide, compute capabilities)."""


def _usable(gibibytes: float) -> int:
    return int(gibibytes * GIB)


_V4 = Chip("tpu", 275e12, 32 * GIB, 1200e9, _usable(30.75), 45e9, 3, network_bandwidth=6.25e9)
# Newer pages say 800 GiB/s of the same memory.
_V5E = Chip("tpu", 197e12, 16 * GIB, 819e9, _usable(15.75), 45e9, 2, network_bandwidth=3.125e9)
_V5P = Chip("tpu", 459e12, 96 * GIB, 2765e9, _usable(95.74), 90e9, 3, network_bandwidth=6.25e9)
_V6E = Chip("tpu", 918e12, 32 * GIB, 1638e9, _usable(31.25), 90e9, 2, network_bandwidth=12.5e9)

# 12 links of NVLink 3, 18 of NVLink 4; 200 and 400 Gbit/s a GPU in DGX A100 and DGX H100.
_OF_A100, _OF_H100, SMALLEST_SHARED_MEMORY = 163 * 1024, 227 * 1024, 99 * 1024
_A100 = Chip("gpu", 312e12, 80 * GIB, 2039e9, nvlink_bandwidth=300e9, network_bandwidth=25e9, shared_memory=_OF_A100)
_H100 = Chip("gpu", 989e12, 80 * GIB, 3350e9, nvlink_bandwidth=450e9, network_bandwidth=50e9, shared_memory=_OF_H100)

CHIPS = {
    # The two cores of a chip share its links.
    "TPU v2": Chip("tpu", 22.5e12, 8 * GIB, 350e9, _usable(7.48)),
    "TPU v3": Chip("tpu", 61.5e12, 16 * GIB, 450e9, _usable(15.48)),
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100-SXM4-40GB": dataclasses.replace(_A100, memory_bytes=40 * GIB, memory_bandwidth=1555e9),
    "NVIDIA A100-SXM4-80GB": _A100,
    # Cards for PCIe have NVLink in pairs at most.
    "NVIDIA A100 80GB PCIe": Chip("gpu", 312e12, 80 * GIB, 1935e9, shared_memory=_OF_A100),
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": Chip("gpu", 756e12, 80 * GIB, 2000e9, shared_memory=_OF_H100),
    "NVIDIA H200": dataclasses.replace(_H100, memory_bytes=141 * GIB, memory_bandwidth=4800e9),
    "NVIDIA GH200 480GB": Chip("gpu", 989e12, 96 * GIB, 4000e9, nvlink_bandwidth=450e9, shared_memory=_OF_H100),
    # DGX B200: 1,440 GB and 64 TB/s of eight GPUs.
    "NVIDIA B200": Chip(
        "gpu", 2250e12, 180 * GIB, 8000e9, nvlink_bandwidth=900e9, network_bandwidth=50e9, shared_memory=_OF_H100
    ),
    "NVIDIA L4": Chip("gpu", 121e12, 24 * GIB, 300e9, shared_memory=SMALLEST_SHARED_MEMORY),
}
"""By JAX's `device_kind`. Of a chip that is not here nothing is said: no figure is better than a wrong one."""
