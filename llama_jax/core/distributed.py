"""Start-up of a job of several processes, and what they must agree on."""

import os
import signal
import threading
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from llama_jax.core.config import DistributedConfig
from llama_jax.core.errors import UserError

_CLUSTER_VARIABLES = ("MEGASCALE_COORDINATOR_ADDRESS", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri")
"""Set where JAX itself finds the other processes: several TPU slices, Slurm, Open MPI."""


def start_up(config: DistributedConfig) -> str:
    """Join the other processes, if any, and return the line that says who this is: "process 0 of 2, 8 devices (cpu)".

    Raises:
        UserError: another number of processes joined than was asked for.
    """
    _keep_compiled_programs()
    # A TPU pod lists its hosts, separated by commas.
    in_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    in_cluster = in_pod or any(name in os.environ for name in _CLUSTER_VARIABLES)
    if config.coordinator is not None or (in_cluster and config.num_processes != 1):
        # Only the CPU backend looks at this; without it several CPU processes could not exchange anything.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if config.coordinator is not None:
            print(
                f"process {config.process_id} of {config.num_processes}: joining {config.coordinator} "
                f"(at most {config.timeout_seconds} s)",
                flush=True,
            )
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout_seconds,
            heartbeat_timeout_seconds=60,
        )
    if config.num_processes is not None and jax.process_count() != config.num_processes:
        raise UserError(
            f"distributed.num_processes: asked for {config.num_processes} processes, {jax.process_count()} joined"
        )
    platform = jax.devices()[0].platform
    return f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices ({platform})"


def _keep_compiled_programs() -> None:
    """Turn the persistent compilation cache on, so that the same run starts without compiling the second time."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llama_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def is_main_process() -> bool:
    """Whether this process speaks for the job: prints, and writes what exists once."""
    return jax.process_index() == 0


def broadcast_bytes(content: bytes | None) -> bytes:
    """The bytes that process 0 holds, on every process; the others pass None."""
    if jax.process_count() == 1:
        assert content is not None
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(content or b""))))
    padded = np.frombuffer((content or b"").ljust(size, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


class StopSignal:
    """SIGTERM and Ctrl-C as a request to save and leave, agreed on by all processes at the same step.

    The first signal is a request; a second one gets the default behaviour and ends the process at once. Used as a
    context manager on the main thread.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            handled = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
            for number in handled:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _receive(self, number: int, _frame: object) -> None:
        self._received.set()
        signal.signal(number, signal.SIG_DFL)
        if jax.process_count() > 1:
            # The runtime's own SIGTERM handler is what tells the other processes.
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. All processes get the same answer for the same step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received.is_set()
