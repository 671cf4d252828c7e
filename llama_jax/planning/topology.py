"""TPU slices that are not there: devices to compile for, made by libtpu alone."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from llama_jax.core.errors import UserError

_ENVIRONMENT = {
    # No question to the metadata server of a cloud machine, which elsewhere is waited for.
    "TPU_SKIP_MDS_QUERY": "1",
    # Otherwise a lock file lets one process at a time load libtpu.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Their values do not matter here; without any, libtpu prints warnings.
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def tpu_devices(name: str) -> list[Any]:
    """The devices of a TPU slice to compile for; nothing can be allocated or run on them.

    Sets the environment variables that libtpu reads when it is loaded, where they are unset.

    Args:
        name: generation and chips along each axis of the torus, such as `v5e:2x4`, `v5p:4x4x8` or `v6e:16x16`.

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology: '{name}' needs libtpu, which is not installed; pip install 'llama_jax[plan]' "
            "(there is a wheel for Linux on x86_64 only)"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # The two cores of a v4 chip work as one device, which is how v4 is used; libtpu's default is two devices.
    megacore = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **megacore).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology: '{name}' is no TPU slice such as v5e:2x4 or v5p:4x4x8: {reason}") from None


def compile_without_devices(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile for the devices of `tpu_devices`, past the persistent compilation cache.

    An entry made for absent devices cannot be read back: it would only make every later compilation warn.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        return lowered.compile()
    finally:
        jax.config.update(name, before)
