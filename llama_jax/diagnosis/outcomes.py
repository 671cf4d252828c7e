"""What the probe reported, judged: why it stopped, numbers that are wrong, speeds that are low, and the verdict.

Pure functions, like those of `findings`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.diagnosis.findings import Finding

_WHAT_HAS_A_PEAK = {
    "matmul_bfloat16": "bfloat16 matrix products reach",
    "memory_bandwidth": "reading and writing memory reaches",
}
_SLOW_SHARE = 0.5
"""Large matrix products reach much more of the peak on every accelerator that nothing else uses."""


def start_failure(why: str, has_peers: bool) -> Finding:
    """JAX did not start.

    Args:
        why: the last words of the attempt, in one line.
        has_peers: whether other processes were expected to take part.
    """
    for pattern, remedy in _START_REMEDIES.items():
        if re.search(pattern, why, re.IGNORECASE):
            return Finding("broken", f"JAX does not start: {why}", remedy)
    if has_peers and re.search(r"no answer|deadline|timed out|failed to connect|unavailable", why, re.IGNORECASE):
        remedy = (
            "start the same command on every host at the same time, as ./run_tpu.sh does, or: "
            "gcloud compute tpus tpu-vm ssh NAME --worker=all --command='…'"
        )
        return Finding("broken", f"not all processes of this job have joined: {why}", remedy)
    return Finding(
        "broken", f"JAX does not start: {why}", "for the whole traceback: python -c 'import jax; print(jax.devices())'"
    )


_START_REMEDIES = {
    r"no module named|importerror|cannot import": "pip install --force-reinstall llama_jax",
    r"(coordinator_address|num_processes|process_id) should be defined": "the environment names other hosts, which "
    "JAX cannot find: give --distributed.coordinator, .num_processes and .process_id, or unset TPU_WORKER_HOSTNAMES "
    "and the like",
    r"lockfile|already in use|resource busy": "end the process that holds the TPU, which sudo lsof -w /dev/accel* "
    "/dev/vfio/* names; if none does: sudo rm /tmp/libtpu_lockfile",
    r"SIGSEGV|SIGILL|PJRT API version": "a plugin for another version of JAX can cause this: pip install -U "
    "'llama_jax[tpu]', or [cuda12], or [cuda13]",
    r"unable to initialize backend|not in the list of known backends": "unset JAX_PLATFORMS, or install what it names: "
    "pip install 'llama_jax[tpu]', or [cuda12], or [cuda13]",
}
"""By a pattern in the last words of an attempt."""


def stage_failure(stage: str, why: str) -> Finding:
    """A measurement or a check failed, or did not finish."""
    remedy = "run it again; if it persists, update driver and plugin: pip install -U 'llama_jax[tpu]', or [cuda13]"
    if "RESOURCE_EXHAUSTED" in why or "out of memory" in why.lower():
        remedy = "another process holds the memory of the device: nvidia-smi, or sudo lsof -w /dev/accel* /dev/vfio/*"
    elif "no answer" in why and " along " in stage:
        remedy = "devices cannot reach each other: NCCL_DEBUG=INFO shows the network of GPUs; for a TPU recreate the VM"
    return Finding("broken", f"{stage}: {why}", remedy)


def wrong_numbers(what: str) -> Finding:
    """A device computes or exchanges wrongly."""
    remedy = "do not train here: update driver and plugin, try again; if it persists, exclude that device or machine"
    return Finding("broken", what, remedy)


def low_speeds(report: Mapping[str, Any]) -> list[Finding]:
    """Measurements far below the published peak."""
    slow = []
    for name, what in _WHAT_HAS_A_PEAK.items():
        rate = report.get(name)
        if rate and rate["peak"] and rate["median"] < _SLOW_SHARE * rate["peak"]:
            share = f"{rate['median'] / rate['peak']:.0%} of the published peak"
            remedy = "another process may use the device, or it is throttled: nvidia-smi -q -d CLOCK,PERFORMANCE"
            slow.append(Finding("warning", f"{what} {share}", remedy))
    return slow


def verdict(found: Sequence[Finding], report: Mapping[str, Any]) -> str:
    """One line: whether to train here."""
    broken = [finding for finding in found if finding.level == "broken"]
    warnings = sum(finding.level == "warning" for finding in found)
    if broken:
        problems = "1 problem" if len(broken) == 1 else f"{len(broken)} problems"
        return f"{problems}: {'; '.join(finding.what for finding in broken)}"
    devices = report["devices"]
    parts = [f"{devices['count']} {devices['kind']} {'device' if devices['count'] == 1 else 'devices'}"]
    if devices["processes"] > 1:
        parts.append(f"{devices['processes']} processes")
    if report["collectives"]:
        parts.append("every collective correct")
    if warnings:
        parts.append("1 warning" if warnings == 1 else f"{warnings} warnings")
    return f"ready: {', '.join(parts)}"
