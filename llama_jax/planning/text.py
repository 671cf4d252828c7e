"""The report of a plan, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.core.chips import GIB
from llama_jax.core.text import aligned
from llama_jax.model.flops import CONVENTION
from llama_jax.planning.roofline import LABEL


def heading_lines(report: Mapping[str, Any]) -> list[str]:
    """What is going to be compiled, for what."""
    trained = report.get("trained", report["parameters"])
    train = "" if trained == report["parameters"] else f", {trained:,} train"
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1) or "one device"
    slices = f"{report['num_slices']} slices of " if report["num_slices"] > 1 else ""
    if report["what"] == "decode step":
        work = f"{report['rows']:,} rows, caches of {report['slots']:,} tokens, {report['dtype']}"
    else:
        tokens = report["rows"] * report["sequence_length"]
        work = (
            f"{report['rows']:,} rows x {report['sequence_length']:,} tokens = {tokens:,} in "
            f"{report['microbatches']} microbatches, {report['dtype']}, remat {report['remat']}, "
            f"attention {report['attention']}"
        )
    lines = [
        f"model:      {report['model']}, {report['parameters']:,} parameters{train}",
        f"what:       {report['what']}: {work}",
        f"hardware:   {slices}{report['topology']}, {report['devices']} x {report['device_kind']}; mesh {mesh}",
    ]
    if kinds := report.get("memory_estimate"):
        by_kind = ", ".join(f"{kind} {_gib(size)}" for kind, size in kinds.items() if size)
        lines.append(f"estimated:  {_gib(sum(kinds.values()))} GiB per device at the peak: {by_kind}")
    return [*lines, "compiling…"]


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """What the compiled program says."""
    memory = report["memory"]
    held = ", ".join(f"{kind} {_gib(size)}" for kind, size in memory["held"].items() if size)
    lines = [f"compiled:   in {report['compile_seconds']} s"]
    if not report["fits"]:
        return [
            *lines,
            f"fits:       NO: needs {_gib(memory['needed'])} GiB per device of {_gib(memory['limit'])}, "
            f"{_gib(memory['shortfall'])} too many",
            f"            held between steps, GiB: {held}",
            *_flops_lines(report),
        ]
    lines += [
        f"fits:       yes, {_gib(memory['peak'])} of {_gib(memory['limit'])} GiB per device at the peak, "
        f"{_gib(memory['headroom'])} to spare",
        f"memory:     GiB per device: {held}, of which {_gib(memory['updated_in_place'])} updated in place; "
        f"{_gib(memory['temporary'])} more at the peak",
        *_flops_lines(report),
    ]
    return lines + _communication_lines(report) + _overheads_lines(report) + _roofline_lines(report)


def _flops_lines(report: Mapping[str, Any]) -> list[str]:
    flops = report["flops"]
    both = f"FLOPs:      {flops['model']:.4g} by the formula, {flops['program']:.4g} in the program"
    if report["what"] == "decode step":
        return [both]
    return [
        f"{both}: {flops['recomputation']:.3f} times, with recomputation",
        f"            (formula: {CONVENTION})",
    ]


def _communication_lines(report: Mapping[str, Any]) -> list[str]:
    sent = report["communication"]
    if not sent["collectives"]:
        return ["sent:       nothing"]
    minimum = "" if sent["ratio"] is None else f", {sent['ratio']:.3f} times the minimum of this layout"
    header = ("collective", "axes", "type", "pass", "devices", "count", "GiB", "sent GiB", "overlapped")
    rows = [
        (
            each["kind"],
            " x ".join(each["axes"]),
            "+".join(each["types"]),
            each["pass"],
            f"{each['devices']:,}",
            f"{each['count']:,}",
            f"{each['bytes'] / GIB:.3f}",
            f"{each['wire_bytes'] / GIB:.3f}",
            "yes" if each["overlapped"] else "no",
        )
        for each in sent["collectives"]
        if each["wire_bytes"] >= sent["wire_bytes"] / 1000
    ]
    left_out = len(sent["collectives"]) - len(rows)
    lines = [f"sent:       {_gib(sent['wire_bytes'])} GiB by each device{minimum}"]
    if report.get("stages") and sent["ratio"] and sent["ratio"] > 1.2:
        lines.append(
            f"            (--mesh.fsdp_stages {report['stages']} sends less, along one torus dimension at a time)"
        )
    lines += [f"            {line}" for line in aligned([header, *rows], words=4)]
    return lines + ([f"            and {left_out} kinds below a thousandth each"] if left_out else [])


def _overheads_lines(report: Mapping[str, Any]) -> list[str]:
    """What else a program for a GPU does."""
    if not (found := report.get("overheads")):
        return []
    share = found["float32_flops"] / found["flops"] if found["flops"] else 0
    copied, stacked = _gib(found["copied_bytes"]), _gib(found["stacked_bytes"])
    return [
        f"beside:     {copied} GiB of plain copies, {stacked} GiB into and out of arrays of all turns of a loop;",
        f"            {share:.1%} of the products in float32; {found['repeated']:,} instructions repeated for want of "
        "memory",
    ]


def _roofline_lines(report: Mapping[str, Any]) -> list[str]:
    bound = report["roofline"]
    seconds = ", ".join(f"{resource} {value:.3g} s" for resource, value in bound["seconds"].items())
    unknown = f"; no figure for {' and '.join(bound['no_figure'])}" if bound["no_figure"] else ""
    return [
        f"roofline:   {bound['label']}",
        f"            {seconds}: bound by {bound['bound']}{unknown}",
        f"            {bound['as_scheduled']:.3g} s with what the schedule overlaps (utilization "
        f"{bound['most_utilization']:.0%}), {bound['all_at_once']:.3g} s if it overlapped everything",
    ]


def remedy_lines(remedies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to change about a step that does not fit."""
    if not remedies:
        return ["            no change known here would make it fit"]
    header = ("add, by a model of memory and time (estimated)", "GiB", "device-seconds a token")
    rows = [
        (
            each["options"],
            _gib(each["estimated"]["memory"]),
            f"x {each['estimated']['time_a_token']:.3f}",
        )
        for each in remedies
    ]
    return ["would fit:", *(f"            {line}" for line in aligned([header, *rows], words=1))]


def search_lines(ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """Candidates, the best first."""
    header = ("rank", "options", "estimated GiB", "s", "compiled: fits", "GiB", "sent GiB", "roofline s")
    rows = []
    for number, each in enumerate(ranked, 1):
        estimated = each["estimated"]
        cells = [str(number), each["options"], _gib(estimated["memory"]), f"{estimated['seconds']:.3g}"]
        if "compile_seconds" not in each:
            cells += ["", "", "", ""]
        elif not each["fits"]:
            cells += ["no", _gib(each["memory"]["needed"]), "", ""]
        else:
            sent, bound = each["communication"], each["roofline"]
            cells += ["yes", _gib(each["memory"]["peak"]), _gib(sent["wire_bytes"]), f"{bound['as_scheduled']:.3g}"]
        rows.append(tuple(cells))
    return [*aligned([header, *rows], words=2), f"estimates and roofline: {LABEL}"]


def _gib(size: float | int) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 100 or size == 0 else f"{size / GIB:.2g}"
