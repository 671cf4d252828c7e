"""What the probe sends, taken together: shown as it comes, and judged at the end."""

from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.diagnosis.environment import Devices, Host, as_json
from llama_jax.diagnosis.findings import Finding, findings, in_order
from llama_jax.diagnosis.outcomes import low_speeds, stage_failure, start_failure, verdict, wrong_numbers
from llama_jax.diagnosis.probe import STARTING, Message
from llama_jax.diagnosis.report import Report

_RATES = {
    "matmul_bfloat16": ("bfloat16 matmul", "GFLOP/s"),
    "matmul_float32": ("float32 matmul", "GFLOP/s"),
    "memory_bandwidth": ("read and write", "GB/s"),
}
"""Measurements by the name under which the probe sends them."""


class Examination:
    """The messages up to now, printed as they come."""

    def __init__(self, host: Host, report: Report, has_peers: bool) -> None:
        self._hosts = [host]
        self._devices: Devices | None = None
        self._report = report
        self._has_peers = has_peers
        self._has_begun = False
        self._values: dict[str, Any] = {"devices": None, "collectives": []}
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
            self._devices = Devices.from_json(value)
            self._values["devices"] = value
        elif what == "hosts":
            self._hosts = [Host.from_json(host) for host in value]
        elif what in ("failed", "stopped"):
            self._fail(value["stage"], value["why"])
        elif what == "wrong":
            self.found.append(wrong_numbers(value))
        elif what == "collective":
            self._values["collectives"].append(value)
            if value["problem"]:
                self.found.append(wrong_numbers(f"{value['name']} along {value['axes']}: {value['problem']}"))
        elif what != "end":
            self._values[what] = value
        if what not in ("stage", "pod", "devices"):
            self._begin()
        self._show(what, value)

    def _fail(self, stage: str, why: str) -> None:
        starting = stage == STARTING
        self.found.append(start_failure(why, self._has_peers) if starting else stage_failure(stage, why))

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
            name, unit = _RATES[what]
            self._report.rate(name, value, unit)
        elif what == "collective":
            self._report.collective(value)

    def result(self) -> dict[str, Any]:
        """Everything, judged, for JSON."""
        self.found = in_order([*self.found, *findings(self._hosts, self._devices), *low_speeds(self._values)])
        return {
            "verdict": verdict(self.found, self._values),
            "ready": not any(finding.level == "broken" for finding in self.found),
            "findings": [finding._asdict() for finding in self.found],
            "hosts": [as_json(host) for host in self._hosts],
            **self._values,
        }
