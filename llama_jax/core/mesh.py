"""The mesh over the devices that programs run on, and what kind of devices they are."""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from llama_jax.core.chips import CHIPS, Chip
from llama_jax.core.config import MESH_AXES, MeshConfig
from llama_jax.core.errors import CannotGoOnError, UserError


def _in_one_line(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1]:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
        record.exc_info = None
    return True


# Why a plugin of JAX does not come up is worth a line, not the traceback with which JAX logs it.
logging.getLogger("jax._src.xla_bridge").addFilter(_in_one_line)


def all_devices() -> Sequence[Any]:
    """The devices of all processes.

    Raises:
        CannotGoOnError: JAX does not start, or finds none of the platform that was asked for.
    """
    try:
        return jax.devices()
    except jax.errors.JaxRuntimeError:
        raise  # of a job whose processes do not meet
    except (RuntimeError, AssertionError) as error:  # without a word where CUDA is asked for and no GPU is seen
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no such device is seen"
        advice = f"JAX_PLATFORMS={asked}: {reason}; unset it to take what there is" if asked else reason
        raise CannotGoOnError(advice) from None


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the given devices (all by default), in an order that suits the interconnect. Several TPU slices lie
    along `data`, the axis that sends least.

    Raises:
        UserError: the axes do not multiply to the number of devices, or `data` is not a multiple of the slices.
    """
    devices = all_devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        asked = " x ".join(f"{axis} {getattr(config, axis)}" for axis in MESH_AXES)
        raise UserError(f"mesh: {asked} does not make {len(devices)} devices; -1 takes what is left")
    # (Of GPUs a slice is a machine, and `fsdp` may well span several.)
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1
    if sizes["data"] % slices:
        raise UserError(
            f"mesh.data: {sizes['data']} is not divisible by the {slices} slices, which lie along this axis"
        )
    if config.fsdp_stages and math.prod(config.fsdp_stages) != sizes["fsdp"]:
        raise UserError(f"mesh.fsdp_stages: {list(config.fsdp_stages)} does not make mesh.fsdp {sizes['fsdp']}")
    if config.fsdp_stages:
        stages = {f"fsdp_{number}": size for number, size in enumerate(config.fsdp_stages)}
        sizes = {"data": sizes["data"], **stages, "sequence": sizes["sequence"], "tensor": sizes["tensor"]}
    # Auto: the compiler propagates shardings from the constraints. The default, Explicit, makes constraints assertions.
    return Mesh(_arranged(sizes, devices, slices), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _arranged(sizes: Mapping[str, int], devices: Sequence[Any], slices: int) -> np.ndarray:
    """The devices in the shape of the mesh: neighbours along an axis are neighbours in the torus."""
    inner = {**sizes, "data": sizes["data"] // slices}
    outer = [slices if axis == "data" else 1 for axis in sizes]
    make = functools.partial(mesh_utils.create_hybrid_device_mesh, dcn_mesh_shape=outer)
    if slices == 1:
        make = mesh_utils.create_device_mesh
    try:
        return make(tuple(inner.values()), devices=devices)
    except NotImplementedError:
        # An axis that is not a product of whole torus dimensions takes part of one.
        return make(tuple(inner.values()), devices=devices, allow_split_physical_axes=True)


def mesh_in_use() -> AbstractMesh:
    """The mesh that `jax.set_mesh` has set; an empty one without."""
    return jax.sharding.get_abstract_mesh()


def platform() -> Literal["cpu", "gpu", "tpu"]:
    """Where programs run under the mesh in use, or will where they are only compiled; without a mesh, JAX's default."""
    device = mesh_in_use().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name  # pyright: ignore[reportReturnType]


def chip() -> Chip | None:
    """What the maker says of the devices of the mesh in use; None where that is not known."""
    device = mesh_in_use().abstract_device
    return None if device is None else CHIPS.get(device.device_kind)
