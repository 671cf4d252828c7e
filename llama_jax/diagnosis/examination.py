"""What the probe sends, taken together: shown as it comes, and judged at the end."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.diagnosis.environment import Devices, Host
from llama_jax.diagnosis.findings import Finding, findings, in_order
from llama_jax.diagnosis.probe import STARTING, Message
from llama_jax.diagnosis.report import Report

_RATES = {
    "matmul_bfloat16": ("bfloat16 matmul", "GFLOP/s", "bfloat16 matrix products reach"),
    "matmul_float32": ("float32 matmul", "GFLOP/s", "float32 matrix products reach"),
    "memory_bandwidth": ("read and write", "GB/s", "reading and writing memory reaches"),
}
"""Measurements by the name under which the probe sends them: how they are called, their unit, and their verb."""
_SLOW_SHARE = 0.5
"""Large matrix products reach much more of the peak on every accelerator that nothing else uses."""


class Examination:
    """The messages up to now, printed as they come."""

    def __init__(self, host: Host, report: Report, has_peers: bool) -> None:
        self._hosts = [host]
        self._devices: Devices | None = None
        self._report = report
        self._has_peers = has_peers
        self._has_begun = False
        self._values: dict[str, Any] = {"devices": None, "numbers": [], "collectives": []}
        self.found: list[Finding] = []

    @property
    def reports(self) -> bool:
        """Whether this process speaks for all; where JAX does not start, each speaks for itself."""
        return self._devices is None or self._devices.process == 0

    @property
    def rank(self) -> str:
        assert self._devices is not None
        return f"process {self._devices.process} of {self._devices.processes}"

    def take(self, message: Message) -> None:
        """Take the next message of the probe.

        Raises:
            UserError: the probe found a mistake of the user.
        """
        what, value = message
        if what == "mistake":
            raise UserError(value)
        if what == "stage":
            self._report.under_way(value)
        elif what == "pod":
            self._has_peers = True
        elif what == "devices":
            self._devices = value
            self._values["devices"] = dataclasses.asdict(value)
        elif what == "hosts":
            self._hosts = [Host.from_json(host) for host in value]
        elif what in ("failed", "stopped"):
            stage, why = value["stage"], value["why"]
            starting = stage == STARTING
            self.found.append(start_failure(why, self._has_peers) if starting else stage_failure(stage, why))
        elif what == "wrong":
            self.found.append(wrong_numbers(value))
        elif what == "number":
            self._values["numbers"].append(value)
            if not value["ok"]:
                self.found.append(wrong_numbers(f"{value['what']}: {wrong_by(value)}"))
        elif what == "collective":
            self._values["collectives"].append(value)
            if value["problem"]:
                self.found.append(wrong_numbers(f"{value['name']} along {value['axes']}: {value['problem']}"))
        elif what != "end":
            self._values[what] = value
        if what not in ("stage", "pod", "devices"):
            self._begin()
        self._show(what, value)

    def _begin(self) -> None:
        """Print what was held back until it was known which process speaks, and for which hosts."""
        if self._has_begun or not self.reports:
            return
        self._has_begun = True
        self._report.machine(self._hosts)
        if self._devices is not None:
            self._report.devices(self._devices)

    def _show(self, what: str, value: Any) -> None:
        if not self.reports:
            return
        if what == "choices":
            self._report.choices(value)
        elif what in _RATES:
            name, unit, _ = _RATES[what]
            self._report.rate(name, value, unit)
        elif what == "number":
            self._report.number(value, wrong_by(value))
        elif what == "collective":
            self._report.collective(value)

    def result(self) -> dict[str, Any]:
        """Everything, judged, for JSON."""
        self.found = in_order([*self.found, *findings(self._hosts, self._devices), *low_speeds(self._values)])
        return {
            "verdict": verdict(self.found, self._values),
            "ready": not any(finding.level == "broken" for finding in self.found),
            "findings": [finding._asdict() for finding in self.found],
            "hosts": [dataclasses.asdict(host) for host in self._hosts],
            **self._values,
        }


def start_failure(why: str, has_peers: bool) -> Finding:
    """JAX did not start.

    Args:
        why: the last words of the attempt, in one line.
        has_peers: whether other processes were expected to take part.
    """
    for pattern, remedy in _START_REMEDIES.items():
        if re.search(pattern, why, re.IGNORECASE):
            return Finding("broken", f"JAX does not start: {why}", remedy)
    if has_peers and re.search(
        r"no answer|did not come|deadline|timed out|failed to connect|unavailable", why, re.IGNORECASE
    ):
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


def wrong_by(checked: Mapping[str, Any]) -> str:
    """Error and tolerance of numbers that were checked (`numbers.Check.found`), or why there are none."""
    if "problem" in checked:
        return checked["problem"]
    error = "no number" if checked["error"] is None else f"{checked['error']:.1e}"
    return f"off by {error}, of {checked['tolerance']:.1e} that rounding explains"


def low_speeds(report: Mapping[str, Any]) -> list[Finding]:
    """Measurements far below the published peak."""
    slow = []
    for name, (_, _, what) in _RATES.items():
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
    if report.get("numbers"):
        parts.append("every number right")
    if report["collectives"]:
        parts.append("every collective correct")
    if warnings:
        parts.append("1 warning" if warnings == 1 else f"{warnings} warnings")
    return f"ready: {', '.join(parts)}"
