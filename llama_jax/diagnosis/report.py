"""The report for people: short aligned lines, section by section, each as soon as it is known."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.core.chips import GIB
from llama_jax.diagnosis.environment import Devices, Host, Place
from llama_jax.diagnosis.findings import Finding

_LABEL, _VALUE = 32, 18
"""Widths of the first two columns."""
_STYLES = {"broken": "bold red", "warning": "yellow", "note": "dim"}


class Report:
    """Prints to one stream; with colours, and with a line that says what is under way, on a terminal."""

    def __init__(self, stream: Any) -> None:
        from rich.console import Console

        # Lines as long as they are, where nobody looks at them in a window.
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._status = self._console.status("")
        self._group = ""

    def under_way(self, stage: str) -> None:
        """Say what is being done now."""
        if self._console.is_terminal:
            self._status.update(f"{stage} …")
            self._status.start()

    def close(self) -> None:
        """Take that line away."""
        self._status.stop()

    def machine(self, hosts: Sequence[Host]) -> None:
        """Software and hardware, of the first host where there are several."""
        host = hosts[0]
        self._heading("software")
        self._row("python", host.python, _asked(host, "python"))
        for package, version in host.packages.items():
            self._row(package, version, _asked(host, package))
        self._heading("machine")
        self._row("host" if len(hosts) == 1 else f"{len(hosts)} hosts", _listed([each.name for each in hosts]))
        self._row("processors", f"{host.processors} x {host.processor}" if host.processor else str(host.processors))
        if host.memory_bytes is not None and host.available_bytes is not None:
            self._row("memory", f"{_size(host.memory_bytes)}, {_size(host.available_bytes)} free")
        if host.tpu_chips:
            self._row("TPU chips", f"{host.tpu_chips} x {host.tpu_generation}")
        if host.nvidia_gpus or host.nvidia_driver:
            self._row("NVIDIA GPUs", f"{host.nvidia_gpus}, driver {host.nvidia_driver or 'not loaded'}")
        self._row("open files", "without limit" if host.open_files is None else f"at most {host.open_files:,}")
        self._row("runs", _place(host.runs))
        for number, (name, value) in enumerate(host.variables.items()):
            self._row("environment" if number == 0 else "", f"{name}={value}")

    def devices(self, devices: Devices) -> None:
        """What JAX runs on."""
        self._heading("devices")
        processes = "1 process" if devices.processes == 1 else f"{devices.processes} processes"
        self._row("devices", f"{devices.count} x {devices.kind} ({devices.platform}), {processes}")
        if devices.memory_bytes is not None:
            self._row("memory of each", _size(devices.memory_bytes))
        if devices.cache is not None:
            size = "" if devices.cache_bytes is None else f", {_size(devices.cache_bytes)} kept"
            self._row("compiled programs", f"{_place(devices.cache)}{size}")

    def choices(self, choices: Mapping[str, Any]) -> None:
        """Implementations that training would use."""
        rows = f"{choices['rows']} x {choices['sequence_length']:,} tokens"
        self._heading(f"training of {choices['model']}, {rows}, bfloat16")
        self._row("attention", choices["attention"])
        for reason in filter(None, choices["attention_reason"].split("; ")):
            self._row("", f"({reason})", style="dim")
        self._row("loss", choices["loss"])

    def rate(self, name: str, rate: Mapping[str, Any], unit: str) -> None:
        """A measurement; `unit` such as "GFLOP/s" has its prefix."""
        if not self._group:
            self._heading("speed of one device: median (slowest – fastest)")
            self._group = "speed"
        figures = {key: figure(rate[key]) for key in ("median", "least", "most")}
        spread = f"({figures['least']} – {figures['most']} in {rate['repetitions']})"
        share = ""
        if rate["peak"] is not None:
            share = f"   {rate['median'] / rate['peak']:.0%} of the published {figure(rate['peak'])}"
        self._row(name, f"{figures['median']} {unit}", f"{spread}{share}")

    def number(self, checked: Mapping[str, Any], remark: str) -> None:
        """Whether what the device computes is right."""
        if self._group != "numbers":
            self._heading("numbers of one device, next to float64 and to the losses of a CPU")
            self._group = "numbers"
        outcome = "correct" if checked["ok"] else "WRONG"
        self._row(checked["what"], outcome, remark, style=None if checked["ok"] else "bold red")

    def collective(self, checked: Mapping[str, Any]) -> None:
        """Whether one collective is correct, and its speed."""
        if self._group in ("", "speed", "numbers"):
            self._heading("collectives: numbers, and bytes that a device sends per second")
        if self._group != checked["axes"]:
            self._group = checked["axes"]
            self._row(checked["axes"], "")
        outcome = "WRONG" if checked["problem"] else "correct"
        speed = f"{figure(checked['bytes_per_second'])} GB/s"
        self._row(f"  {checked['name']}", outcome, speed, style="bold red" if checked["problem"] else None)

    def findings(self, found: Sequence[Finding]) -> None:
        """What is wrong, and what to do about it."""
        if found:
            self._heading("findings")
        for finding in found:
            where = f" [{_listed(finding.hosts)}]" if finding.hosts else ""
            self._hanging(finding.level, finding.what + where, _STYLES[finding.level])
            self._hanging("", finding.remedy, "", first="→ ")

    def verdict(self, line: str, ready: bool) -> None:
        """The last line."""
        self._console.print()
        self._console.print(line, style="bold green" if ready else "bold red")

    def _heading(self, text: str) -> None:
        self._console.print()
        self._console.print(text, style="bold")

    def _row(self, label: str, value: str, remark: str = "", style: str | None = None) -> None:
        line = f"  {label:<{_LABEL}}{value:<{_VALUE}}  {remark}" if remark else f"  {label:<{_LABEL}}{value}"
        self._console.print(line.rstrip(), style=style)

    def _hanging(self, label: str, text: str, style: str, first: str = "") -> None:
        """A label in its style, and a text that is wrapped beside it on a terminal."""
        from rich.text import Text

        indent = 11
        width = max(40, self._console.width - indent) if self._console.is_terminal else 10_000
        lines = textwrap.wrap(first + text, width, subsequent_indent=" " * len(first), break_on_hyphens=False)
        for number, line in enumerate(lines):
            shown = f"  {label if number == 0 else '':<{indent - 2}}"
            self._console.print(Text.assemble((shown, style), line))


def figure(rate: float) -> str:
    """A rate in units of 10^9, to four digits or so."""
    value = rate / 1e9
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


def _asked(host: Host, package: str) -> str:
    """The range that is asked for, by this package if it asks."""
    asking = [each for each in host.requirements if each.package == package and each.specifier]
    asking.sort(key=lambda each: each.owner != "llama_jax")
    if not asking:
        return ""
    lowest_first = ",".join(sorted(asking[0].specifier.split(","), reverse=True))
    return lowest_first if asking[0].owner == "llama_jax" else f"{lowest_first} ({asking[0].owner})"


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"


def _place(place: Place) -> str:
    if not place.writable:
        return f"{place.path}: not writable"
    return place.path if place.free_bytes is None else f"{place.path}: {_size(place.free_bytes)} free"
