"""The results of `benchmark all` as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_jax.benchmarks.device.parts import Kind, Part

Result = Mapping[str, Any]
"""What a part printed."""


def table(result: Mapping[str, Any], parts: Sequence[Part]) -> str:
    """Results with the other sides beside them, the heaviest operations, and what is missing, each with its reason."""
    found = result["parts"]
    lines = [_heading(result), "", "| what | here | PyTorch | ratio | published, not ours |", "|---|---|---|---|---|"]
    lines += [_row(part, parts, found) for part in parts if not part.beside]
    for part in parts:
        profile = _of(found, part.name).get("profile")
        if profile:
            lines += ["", *_operations(part, profile)]
    missing = [f"* `{part.name}`: {_reason(found, part)}" for part in parts if not _of(found, part.name)]
    return "\n".join([*lines, *(["", "Not measured:", "", *missing] if missing else [])])


def summary_line(part: Part, result: Mapping[str, Any]) -> str:
    """What a part found, in words."""
    return _SHOWN[part.kind](_of(result["parts"], part.name))


def _heading(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    smi = machine["nvidia_smi"] or {}
    device = machine["device"]
    versions = [f"{name} {machine['packages'][name]}" for name in ("jax", "torch") if name in machine["packages"]]
    card = f"{device['count']} x {device['kind']}"
    if device["platform"] == "cpu":
        card = f"{machine['processors']} x {machine['processor']}"
    facts = [card, *(f"{words} {smi[name]}" for name, words in _OF_CARD.items() if name in smi)]
    return ", ".join([*facts, f"Python {machine['python']}", *versions, result["date"].partition("T")[0]]) + ":"


_OF_CARD = {"driver_version": "driver", "power.limit": "at most", "clocks.max.sm": "at most"}
"""What NVIDIA's tool says that belongs beside any figure."""


def _row(part: Part, parts: Sequence[Part], found: Mapping[str, Any]) -> str:
    own = _of(found, part.name)
    here = _SHOWN[part.kind](own) if own else "not measured"
    other = next((each for each in parts if each.beside == part.name), None)
    theirs = _of(found, other.name) if other else {}
    shown, ratio = "", ""
    if theirs:
        shown = _SHOWN[part.kind](theirs)
    if own and theirs:
        rates = zip(_RATES[part.kind](own), _RATES[part.kind](theirs), strict=True)
        ratio = ", ".join(f"**{ours / others:.2f}**" for ours, others in rates)
    return f"| {part.what} (`{part.name}`) | {here} | {shown} | {ratio} | {part.published} |"


def _of(found: Mapping[str, Any], name: str) -> Result:
    """What a part printed; nothing where it did not."""
    return found.get(name, {}).get("result") or {}


def _reason(found: Mapping[str, Any], part: Part) -> str:
    outcome = found.get(part.name)
    return "not asked for" if outcome is None else f"{outcome['status']}: {outcome['reason']}"


def _numbers(result: Result) -> str:
    checked = result["numbers"] or []
    wrong = [each["what"] for each in checked if not each["ok"]]
    return f"wrong: {', '.join(wrong)}" if wrong else f"all {len(checked)} correct" if checked else result["verdict"]


def _training(result: Result) -> str:
    said = f"{result['tokens_per_second']:,.0f} tokens/s"
    if flops := result.get("model_flops_per_second"):
        said += f", {flops / 1e12:,.3g} TFLOP/s"
    if utilization := result.get("model_flops_utilization"):
        said += f", {utilization:.1%} of the peak"
    if result.get("checkpointed"):
        said += ", activations made again"
    return said


def _decoding(result: Result) -> str:
    own = result.get("llama_jax", result)
    said = []
    for streams, rates in own["tokens_per_second"].items():
        share = own.get("reading", {}).get(streams, {}).get("of_roofline")
        of = "" if share is None else f" ({share:.0%} of the roofline)"
        said.append(f"{rates['decode']['median']:,.1f} tokens/s in {_streams(streams)}{of}")
    return "; ".join(said)


def _streams(count: str) -> str:
    return "one stream" if count == "1" else f"{count} streams"


def _attention(result: Result) -> str:
    said = []
    for name, each in result["implementations"].items():
        if "seconds" in each:
            chosen = ", chosen" if name == result["chosen"] else ""
            said.append(f"{name} {each['seconds'] * 1e3:,.2f} ms{chosen}")
    return "; ".join(said)


def _decoding_rates(result: Result) -> list[float]:
    own = result.get("llama_jax", result)
    return [rates["decode"]["median"] for rates in own["tokens_per_second"].values()]


_SHOWN: Mapping[Kind, Callable[[Result], str]] = {
    "numbers": _numbers,
    "training": _training,
    "decoding": _decoding,
    "attention": _attention,
}
_RATES: Mapping[Kind, Callable[[Result], list[float]]] = {
    "numbers": lambda _: [],
    "training": lambda result: [result["tokens_per_second"]],
    "decoding": _decoding_rates,
    "attention": lambda _: [],
}
"""Rates of which the ratio to the other side's is told."""


def _operations(part: Part, profile: Mapping[str, Any]) -> list[str]:
    return [
        f"The ten heaviest operations of `{part.name}`, of {profile['busy_seconds']:.3f} s a step:",
        "",
        "| share | seconds | calls | operation | made for |",
        "|---|---|---|---|---|",
        *(
            f"| {each['share']:.1%} | {each['seconds']:.4f} | {each['calls']:,.0f} | `{each['name']}` | "
            f"{each['source'] and '`' + each['source'] + '`'} |"
            for each in profile["operations"]
        ),
    ]
