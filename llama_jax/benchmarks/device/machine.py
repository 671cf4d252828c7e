"""On what a benchmark runs: the device that JAX finds, its driver, clock and power, the versions. Starts JAX only in a
process of its own, which gives the device's memory back."""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from llama_jax.core.errors import UserError

_PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12"),
    *("nvidia-cudnn-cu13", "tokamax", "torch", "transformers"),
)
_ASKED = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
_PROGRAM = """
import json, jax
device = jax.devices()[0]
print(json.dumps({"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()}))
"""
MUST_AGREE = ("device", "packages", "python", "code")
"""What results in one file have in common."""


def environment() -> dict[str, str]:
    """The variables with which a part is started: it finds this package where this process does, and may use nearly all
    of a GPU, of which JAX takes three quarters otherwise."""
    path = os.pathsep.join(filter(None, sys.path))
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92", **os.environ, "PYTHONPATH": path}


def machine() -> dict[str, Any]:
    """All of it as JSON values.

    Raises:
        UserError: JAX does not start.
    """
    started = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment(), capture_output=True, text=True)
    if started.returncode:
        reason = (started.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"JAX does not start: {reason}; see llama-jax doctor")
    device = json.loads(started.stdout.strip().splitlines()[-1])
    return {
        "device": device | {"platform": "gpu" if device["platform"] in ("cuda", "rocm") else device["platform"]},
        "nvidia_smi": nvidia_smi(_ASKED),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": {package: version for package in _PACKAGES if (version := _version(package))},
        "code": _code(),
    }


def nvidia_smi(asked: tuple[str, ...]) -> dict[str, str] | None:
    """What NVIDIA's tool says of the first GPU; None without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(asked, (word.strip() for word in said.strip().split(",")), strict=False))


def has(packages: tuple[str, ...]) -> str:
    """The first of these that is not installed; nothing where all are."""
    return next((package for package in packages if importlib.util.find_spec(package) is None), "")


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], output: str) -> None:
    """Refuse to put what is measured now beside what was measured otherwise.

    Raises:
        UserError: names what differs.
    """
    for name in MUST_AGREE:
        if before[name] != now[name]:
            raise UserError(
                f"--output {output}: holds results of another {name}, {_shown(before[name])}, and this is "
                f"{_shown(now[name])}; give another file"
            )


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _code() -> str:
    """A hash of this package's source: results of before and after a change do not belong together."""
    package, found = Path(__file__).parents[2], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(str(file.relative_to(package)).encode())
        found.update(file.read_bytes())
    return found.hexdigest()[:12]
