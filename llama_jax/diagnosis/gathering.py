"""What can be known of a machine without starting JAX, so that a broken installation can be looked at too. Reads, and
changes nothing."""

import contextlib
import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement as Packaging

from llama_jax.diagnosis.environment import Holder, Host, Place, Requirement

_ACCELERATOR_PACKAGES = {
    "libtpu": "tpu",
    "jax-cuda12-plugin": "cuda12",
    "jax-cuda12-pjrt": "cuda12",
    "jax-cuda13-plugin": "cuda13",
    "jax-cuda13-pjrt": "cuda13",
}
"""Wheels for accelerators, and the extra of jax that asks for each."""

PACKAGES = (
    "llama_jax",
    "jax",
    "jaxlib",
    *_ACCELERATOR_PACKAGES,
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
)
"""What is reported, in this order, where it is installed."""

_VARIABLE_PREFIXES = ("JAX_", "XLA_", "TPU_", "LIBTPU_", "MEGASCALE_", "CUDA_VISIBLE_DEVICES", "NCCL_")
_VARIABLES = ("LD_LIBRARY_PATH", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")
LOCK_FILE = Path("/tmp/libtpu_lockfile")
_TPU_FILES = ("/dev/accel", "/dev/vfio/", str(LOCK_FILE))
_GOOGLE = "0x1ae0"
_TPU_GENERATIONS = {"0x0027": "v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "7x"}
"""By PCI device of that vendor, as in jax._src.hardware_utils."""


def this_host(run_dir: str) -> Host:
    """The machine that this runs on.

    Args:
        run_dir: where runs will be written.
    """
    tpu_chips = _tpu_chips()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    memory, available = _memory()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Host(
        name=socket.gethostname(),
        python=platform.python_version(),
        packages=dict(_versions()),
        requirements=tuple(_requirements()),
        variables=_variables(),
        processor=_processor(),
        processors=len(affinity),
        memory_bytes=memory,
        available_bytes=available,
        open_files=None if soft == resource.RLIM_INFINITY else soft,
        shared_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        huge_pages="[always]" in _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        tpu_chips=len(tpu_chips),
        tpu_generation=tpu_chips[0] if tpu_chips else "",
        nvidia_gpus=_nvidia_gpus(),
        nvidia_driver=_text("/sys/module/nvidia/version").strip() or None,
        tpu_holders=tuple(holders(_TPU_FILES)) if tpu_chips else (),
        tpu_lock_owner=owner_of_locked(LOCK_FILE),
        runs=place(run_dir),
    )


def place(path: str) -> Place:
    """A directory, or where it would be made."""
    if "://" in path:
        return Place(path)
    there = Path(path).expanduser().absolute()
    above = next(folder for folder in (there, *there.parents) if folder.exists())
    writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    return Place(str(there), writable, shutil.disk_usage(above).free)


def _text(path: str | Path) -> str:
    """What is in a file of the kernel's; nothing where there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield package, metadata.version(package)


def _requirements() -> Iterator[Requirement]:
    """What this package, JAX, and JAX's plugins ask of each other and of Python."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        yield Requirement("llama_jax", "python", metadata.metadata("llama_jax")["Requires-Python"] or "")
    installed = dict(_versions())
    extras = {_ACCELERATOR_PACKAGES[package] for package in installed if package in _ACCELERATOR_PACKAGES}
    for owner in ("llama_jax", "jax", *_ACCELERATOR_PACKAGES):
        if owner not in installed:
            continue
        for line in metadata.requires(owner) or ():
            asked = Packaging(line)
            if asked.name not in PACKAGES:
                continue
            for extra in ("", *(sorted(extras) if owner == "jax" else ())):
                # An extra asks for more than what is asked for anyway.
                if _applies(asked, extra) and (not extra or not _applies(asked, "")):
                    yield Requirement(f"jax[{extra}]" if extra else owner, asked.name, str(asked.specifier))


def _applies(asked: Packaging, extra: str) -> bool:
    return asked.marker is None or asked.marker.evaluate({"extra": extra})


def _variables() -> dict[str, str]:
    chosen = (name for name in os.environ if name.startswith(_VARIABLE_PREFIXES) or name in _VARIABLES)
    return {name: os.environ[name] for name in sorted(chosen)}


def _processor() -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> tuple[int | None, int | None]:
    """Bytes in all and bytes to be had, of the machine or of the container where that has less."""
    fields = (line.split() for line in _text("/proc/meminfo").splitlines())
    kilobytes = {parts[0]: int(parts[1]) for parts in fields if len(parts) > 1}
    if "MemTotal:" not in kilobytes:
        return None, None
    total, available = kilobytes["MemTotal:"] * 1024, kilobytes.get("MemAvailable:", 0) * 1024
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        available = min(available, total - int(used or 0))
    return total, available


def _tpu_chips() -> list[str]:
    """The generation of each chip."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    google = (_text(vendor.with_name("device")).strip() for vendor in vendors if _text(vendor).strip() == _GOOGLE)
    return [_TPU_GENERATIONS[device] for device in google if device in _TPU_GENERATIONS]


def _nvidia_gpus() -> int:
    files = sum(name.name.removeprefix("nvidia").isdigit() for name in Path("/dev").glob("nvidia[0-9]*"))
    return files or int(Path("/dev/dxg").exists())  # all of them, under Windows


def holders(beginnings: tuple[str, ...]) -> Iterator[Holder]:
    """Other processes that have a file open whose path begins so; those of other users only root may see."""
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) != os.getpid() and any(name.startswith(beginnings) for name in _opened(folder)):
            words = _text(folder / "cmdline").replace("\0", " ").split()
            yield Holder(int(folder.name), " ".join(words)[:60])


def _opened(process: Path) -> Iterator[str]:
    """Paths of the files that a process has open, as far as they can be seen."""
    with contextlib.suppress(OSError):  # it ended, or is another user's
        for file in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(file.readlink())


def owner_of_locked(file: Path) -> str | None:
    """Who left a lock file that this user cannot lock, with which libtpu fails in every process of this user."""
    try:
        return None if os.access(file, os.R_OK | os.W_OK) else file.owner()
    except (OSError, KeyError):
        return None
