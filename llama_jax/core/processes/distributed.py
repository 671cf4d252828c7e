"""Start-up of a job of several processes, and what they must agree on."""

import contextlib
import glob
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax._src import distributed  # the key-value store and the barriers of `jax.distributed` have no public name
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster  # nor has what `jax.distributed` knows of a TPU VM
from jax.experimental import multihost_utils

from llama_jax.core.config import DistributedConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import all_devices
from llama_jax.core.processes.joining import await_all
from llama_jax.core.processes.memory import keep_freed_memory
from llama_jax.core.processes.peers import Peers
from llama_jax.core.processes.signals import StopSignal, let_work_tidy_up

_CLUSTER_VARIABLES = ("MEGASCALE_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")
"""Set where JAX itself finds the other processes: several TPU slices, what `srun` starts, Open MPI."""
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")
"""Devices of TPUs and GPUs."""


def start_up(config: DistributedConfig) -> str:
    """Join the other processes, if any, and return the line that says who this is: "process 0 of 2, 8 devices (cpu)".

    Raises:
        UserError: another number of processes joined than was asked for.
        CannotGoOnError: see `all_devices` and `await_all`.
    """
    _keep_compiled_programs()
    # (JAX itself cannot be asked: that would start its threads.)
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, _ACCELERATORS)):
        keep_freed_memory()
    in_cluster = any(name in os.environ for name in _CLUSTER_VARIABLES) or in_tpu_pod()
    if config.coordinator is not None or (in_cluster and config.num_processes != 1):
        # Only the CPU backend looks at this; without it several CPU processes could not exchange anything.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if config.coordinator is not None:
            print(
                f"process {config.process_id} of {config.num_processes}: joining {config.coordinator} "
                f"(at most {config.timeout_seconds} s)",
                flush=True,
            )
            await_all(config.coordinator, config.process_id or 0, config.num_processes or 1, config.timeout_seconds)
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds,
            # After the watchdog, which says more: what is set here is when JAX aborts the process.
            heartbeat_timeout_seconds=5 + 3 * config.heartbeat_seconds // 2,
        )
    platform = all_devices()[0].platform
    let_work_tidy_up()
    if config.num_processes is not None and jax.process_count() != config.num_processes:
        raise UserError(
            f"distributed.num_processes: asked for {config.num_processes} processes, {jax.process_count()} joined"
        )
    return f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices ({platform})"


def in_tpu_pod() -> bool:
    """Whether this is one of several hosts of a TPU: those that Kubernetes starts are listed in a variable, separated
    by commas, those of a TPU VM in the metadata of the machine."""
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    with contextlib.suppress(OSError):  # chips, but no metadata: a machine that stands alone
        return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1
    return False


def _keep_compiled_programs() -> None:
    """Turn the persistent compilation cache on, so that the same run starts without compiling the second time."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llama_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def is_main_process() -> bool:
    """Whether this process speaks for the job: prints, and writes what exists once."""
    return jax.process_index() == 0


def main_process_printer(stream: IO[str]) -> Callable[[str], None]:
    """A function that prints a line for the whole job."""
    return lambda text: print(text, file=stream, flush=True) if is_main_process() else None


def from_main_process(make: Callable[[], bytes]) -> bytes:
    """The bytes that `make` gives on process 0, on every process; the others do not call it, and wait however long it
    takes.

    Raises:
        UserError: on every process, if `make` raised it.
    """
    if jax.process_count() == 1:
        return make()
    client: Any = distributed.global_state.client
    key = f"llama_jax/from_main_process/{next(_calls)}"
    content = b""
    # Not by a collective: those give up after half a minute on some networks.
    if is_main_process():
        try:
            content = make()
        except UserError as error:
            client.key_value_set(key, f"failed: {error}")
            raise
        client.key_value_set(key, "made")
    elif (outcome := client.blocking_key_value_get(key, _A_DAY_IN_MILLISECONDS)) != "made":
        raise UserError(outcome.removeprefix("failed: "))
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(content))))
    padded = np.frombuffer(content.ljust(size, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def gathered(content: bytes) -> list[bytes]:
    """What each process has given, on every process; all of them call it at the same point."""
    if jax.process_count() == 1:
        return [content]
    sizes = np.asarray(multihost_utils.process_allgather(np.int64(len(content))))
    padded = np.frombuffer(content.ljust(int(sizes.max()), b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes()[:size] for row, size in zip(rows, sizes.tolist(), strict=True)]


def job_peers() -> Peers:
    """The processes of this job, by what they post where collectives play no part."""
    client: Any = distributed.global_state.client
    rank, folder = jax.process_index(), "llama_jax/notices/"

    def read() -> dict[int, str]:
        return {int(key.removeprefix(folder)): text for key, text in client.key_value_dir_get(folder)}

    return Peers(rank, jax.process_count(), lambda text: client.key_value_set(f"{folder}{rank}", text, True), read)


_calls = itertools.count()
_A_DAY_IN_MILLISECONDS = 24 * 60 * 60 * 1000


def wait_for_leavers(seconds: float) -> None:
    """Wait until all processes want to leave, at most so long. One that leaves before takes the others down before
    they can say why they leave."""
    client: Any = distributed.global_state.client
    with contextlib.suppress(Exception):  # a process may be gone, or busy: then nothing is gained by waiting
        client.wait_at_barrier("llama_jax/leaving", int(1000 * seconds))


class JobStopSignal(StopSignal):
    """A `StopSignal` on which all processes of a job agree at the same step.

    (With several processes only Ctrl-C is heard here, and a second one ends the process at once; SIGTERM is the
    runtime's.)
    """

    def __init__(self) -> None:
        if jax.process_count() == 1:
            super().__init__()
        else:
            # The runtime's own SIGTERM handler is what tells the other processes.
            super().__init__((signal.SIGINT,), lambda: os.kill(os.getpid(), signal.SIGTERM))

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. All processes get the same answer for the same step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received
