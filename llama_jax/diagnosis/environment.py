"""The record of a machine and of what JAX found on it: plain values, which go from process to process. Knows
neither how they are found out nor what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Requirement:
    """What one installed package asks of another."""

    owner: str
    """The package that asks, with the extra by which it does: `jax[tpu]`."""
    package: str
    specifier: str
    """As in PEP 440, `>=0.10,<0.11`; empty: any version."""


@dataclass(frozen=True)
class Holder:
    """A process that has a TPU, or libtpu's lock file, open."""

    pid: int
    command: str


@dataclass(frozen=True)
class Place:
    """A directory that runs write to, there already or not."""

    path: str
    writable: bool = True
    free_bytes: int | None = None
    """None: not known, as for a remote path."""


@dataclass(frozen=True)
class Host:
    """One machine, as it is seen without JAX."""

    name: str = "host"
    python: str = "3.11"
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package that matters and is installed."""
    requirements: tuple[Requirement, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """The environment variables that JAX, its backends and job schedulers read, of those that are set."""
    processor: str = ""
    processors: int = 1
    """Logical processors that this process may use."""
    memory_bytes: int | None = None
    available_bytes: int | None = None
    open_files: int | None = None
    """How many files a process may have open (`ulimit -n`)."""
    shared_bytes: int | None = None
    """Size of /dev/shm."""
    huge_pages: bool = True
    """Whether the kernel backs all memory by transparent huge pages."""
    tpu_chips: int = 0
    """TPU chips on the bus."""
    tpu_generation: str = ""
    """Of the chips: `v5e`."""
    nvidia_gpus: int = 0
    """Device files of NVIDIA's driver."""
    nvidia_driver: str | None = None
    """Version of NVIDIA's kernel module."""
    tpu_holders: tuple[Holder, ...] = ()
    """Other processes that hold the TPU, as far as this user may see them."""
    tpu_lock_owner: str | None = None
    """User of libtpu's lock file, where that file keeps this user's processes out."""
    runs: Place = Place("runs")

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Host":
        """The record whose `dataclasses.asdict` this is."""
        return Host(
            **{
                **values,
                "requirements": tuple(Requirement(**each) for each in values["requirements"]),
                "tpu_holders": tuple(Holder(**each) for each in values["tpu_holders"]),
                "runs": Place(**values["runs"]),
            }
        )


@dataclass(frozen=True)
class Devices:
    """What JAX found, on all hosts."""

    platform: str
    """`cpu`, `gpu` or `tpu`."""
    kind: str
    count: int
    processes: int
    process: int
    """Rank of this process."""
    memory_bytes: int | None
    """What a program may use of the memory of one device; None: unknown, as on CPU."""
    joined: bool
    """Whether the processes can talk to each other outside of programs (`jax.distributed`)."""
    backend_errors: tuple[str, ...]
    """Why plugins or backends of JAX did not come up, a line each."""
    cache: Place | None
    """Where compiled programs are kept; None: nowhere."""
    cache_bytes: int | None
