"""Devices that are not here, and compiling for them: what libtpu and the CUDA plugin can do without hardware. Nothing
can be allocated or run on such devices."""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jax
from jax.experimental import topologies

from llama_jax.core.chips import CHIPS
from llama_jax.core.errors import UserError
from llama_jax.planning.hardware import Topology, parse_topology

_ENVIRONMENT = {
    # No question to the metadata server of a cloud machine, which elsewhere is waited for.
    "TPU_SKIP_MDS_QUERY": "1",
    # Otherwise a lock file lets one process at a time load libtpu.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Their values do not matter here; without any, libtpu prints warnings.
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Else the CUDA plugin gives up where it finds no driver.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}

_CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_COMPLAINTS = re.compile(rb"^.*(Could not find cuda drivers|before absl::InitializeLog\(\)).*\n?", re.MULTILINE)


class DoesNotFitError(UserError):
    """A program needs more memory than a device has."""

    def __init__(self, needed_bytes: int, available_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        """As far as the compiler came: it may be more."""
        self.available_bytes = available_bytes
        super().__init__(
            f"memory: the program needs {needed_bytes / 2**30:.2f} GiB per device, of which "
            f"{available_bytes / 2**30:.2f} are available, {self.shortfall_bytes / 2**30:.2f} GiB too few"
        )

    @property
    def shortfall_bytes(self) -> int:
        """What is missing."""
        return self.needed_bytes - self.available_bytes


def absent_devices(topology: Topology | str) -> list[Any]:
    """The devices of a topology, to compile for. Those of several slices have a `slice_index`.

    Sets the environment variables that the compilers read when they are loaded, where they are unset, and JAX's
    platform to the CPU, where none was chosen: otherwise it would look for the hardware first and complain.

    Args:
        topology: a string stands for `parse_topology` of it.

    Raises:
        UserError: there is no such topology, or its compiler is not installed.
    """
    if isinstance(topology, str):
        topology = parse_topology(topology)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if not getattr(jax.config, "jax_platforms"):  # noqa: B009  (unknown to its type)
        jax.config.update("jax_platforms", "cpu")
    # JAX loads all of its plugins when it is first asked for devices, whichever they are for.
    with _without_complaints():
        return _tpu_devices(topology) if topology.platform == "tpu" else _gpu_devices(topology)


def _tpu_devices(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology: '{topology.name}' needs libtpu, which is not installed; pip install 'llama_jax[plan]' "
            "(there is a wheel for Linux on x86_64 only)"
        )
    options: dict[str, Any] = {}
    # The two cores of a v4 chip work as one device, which is how v4 is used; libtpu's default is two devices.
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"
    if topology.shape == (1, 1):  # libtpu's default is four chips a host
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology: libtpu does not know '{topology.name}': {reason}") from None
    return list(found.devices)


def _gpu_devices(topology: Topology) -> list[Any]:
    # Of a package that is not there, looking for a part of it raises.
    plugin = next((name for name in _CUDA_PLUGINS if importlib.util.find_spec(f"jax_{name[-6:]}_plugin")), None)
    if plugin is None:
        raise UserError(
            f"topology: '{topology.name}' needs JAX's CUDA plugin, which is not installed; pip install "
            "'llama_jax[plan-gpu]' (there is a wheel for Linux only; no GPU and no CUDA are needed)"
        )
    hosts, gpus = topology.shape
    target = resources.files("llama_jax.planning").joinpath(f"{topology.generation}.txtpb").read_text()

    def describe() -> topologies.TopologyDescription:
        # In XLA's order: NVLink domains across hosts, hosts, GPUs of each.
        return topologies.get_topology_desc(platform="cuda", topology=f"1x{hosts}x{gpus}", target_config=target)

    try:
        found = describe()
    except NotImplementedError:
        # JAX looked for plugins before the environment was set, and this one gave up.
        importlib.import_module(plugin).initialize()
        found = describe()
    return list(found.devices)


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """Leave out of standard error that no driver was found, which the CUDA plugin's library says past every log level
    when it is loaded: what is written meanwhile is kept, and repeated afterwards without those lines."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            os.write(2, _COMPLAINTS.sub(b"", kept.read()))


def compile_without_devices(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile for `absent_devices`, past the persistent compilation cache.

    An entry made for absent devices cannot be read back: it would only make every later compilation warn.

    Raises:
        DoesNotFitError: a device has too little memory. The compiler for TPU says so; that for GPU compiles regardless,
            so there the peak it reports is compared with the memory of the chip.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        figures = memory_figures(str(error))
        if figures is None:
            raise
        raise DoesNotFitError(*figures) from None
    finally:
        jax.config.update(name, before)
    device = next(iter(jax.tree.leaves(compiled.input_shardings)[0].device_set))
    chip, memory = CHIPS.get(device.device_kind), compiled.memory_analysis()
    if device.platform == "gpu" and chip and memory and memory.peak_memory_in_bytes > chip.memory_bytes:
        raise DoesNotFitError(memory.peak_memory_in_bytes, chip.memory_bytes)
    return compiled


_REFUSALS = (
    # Before the program is laid out, from a lower bound of what it needs.
    re.compile(
        r"required for HLO temporaries \((?P<needed>[\d.]+\w)\) exceeds available HBM \((?P<available>[\d.]+\w)\)"
    ),
    # After it.
    re.compile(r"memory space hbm\. Used (?P<needed>[\d.]+\w) of (?P<available>[\d.]+\w) hbm"),
)


def memory_figures(message: str) -> tuple[int, int] | None:
    """Bytes needed and bytes available, as the compiler for TPU (libtpu 0.0.42) writes them where a device has too
    little memory; None where a message says something else."""
    for refusal in _REFUSALS:
        if found := refusal.search(message):
            return _size_in_bytes(found["needed"]), _size_in_bytes(found["available"])
    return None


def _size_in_bytes(figure: str) -> int:
    return round(float(figure[:-1]) * 2 ** {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}[figure[-1]])
