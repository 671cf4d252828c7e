"""What came of `benchmark decode`, for people and as JSON values."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.decoding.roofline import least_seconds
from llama_jax.benchmarks.results import gigabytes, say
from llama_jax.benchmarks.turns import Side, summary

Rates = Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]
"""For each side and number of streams the rates of each turn, see `task.rates`."""

_KINDS = ("decode", "prefill", "all")


def report(
    config: BenchmarkConfig,
    facts: Mapping[str, dict[str, Any]],
    measured: Rates,
    sides: Sequence[Side],
    read_seconds: Sequence[float],
) -> dict[str, Any]:
    """Medians, what they are of the other side's and of what the memory gives, and memory held; says it, too.

    Args:
        read_seconds: of a plain read of the weights, by turn; empty where there was none.
    """
    own = facts["llama_jax"]
    result: dict[str, Any] = {"prompt_tokens": config.prompt_tokens, "new_tokens": config.new_tokens}
    for side in sides:
        streams = {
            str(count): {kind: summary([each[kind] for each in found]) for kind in _KINDS}
            for count, found in measured[side.name].items()
        }
        result[side.name] = {**facts[side.name], "tokens_per_second": streams, "peak_host_bytes": side.peak_host_bytes}
    lines = [_heading(config)]
    for kind in _KINDS:
        for count in config.streams:
            lines.append(_rate(config, result, kind, count))
    plain = own["weights_bytes_read"] / statistics.median(read_seconds) if read_seconds else None
    result |= {"plain_read_bytes_per_second": plain}
    for count in config.streams:
        lines.append(_memory_rate(config, result, own, count, plain))
    held = own["weights_bytes"] + own["cache_bytes"]
    for side in sides:
        ratio = side.peak_host_bytes / held
        result[side.name]["memory_ratio"] = ratio
        if own["platform"] == "cpu":
            lines.append(
                f"memory, {side.name}: peak {gigabytes(side.peak_host_bytes)}, ratio {ratio:.2f} to weights + cache of "
                f"{config.decode_rows} streams ({gigabytes(held)})"
            )
    say(config, "\n".join(lines))
    return result


def _heading(config: BenchmarkConfig) -> str:
    other = "" if config.against is None else f"{config.against:>14}"
    return f"{'tokens/s, medians':<24}{'llama_jax':>14}{other}"


def _rate(config: BenchmarkConfig, result: dict[str, Any], kind: str, count: int) -> str:
    """A line with one rate of both sides; their ratio is kept."""

    def median(name: str) -> dict[str, Any]:
        return result[name]["tokens_per_second"][str(count)][kind]

    own = median("llama_jax")
    line = f"{kind + ', ' + _streams(count):<24}{own['median']:>14,.1f}"
    if config.against is None:
        return f"{line}  noise ±{own['noise']:.1%}"
    other = median(config.against)
    ratio = own["median"] / other["median"]
    result.setdefault("ratio", {}).setdefault(str(count), {})[kind] = ratio
    return f"{line}{other['median']:>14,.1f}  ratio {ratio:.2f}  noise ±{own['noise']:.1%}, ±{other['noise']:.1%}"


def _memory_rate(
    config: BenchmarkConfig, result: dict[str, Any], own: Mapping[str, Any], count: int, plain: float | None
) -> str:
    """A line with the bytes of weights and caches that decoding reads in a second, beside what the memory gives: by a
    plain read on a CPU, by the maker's figures of an accelerator's memory and arithmetic."""
    tokens = result["llama_jax"]["tokens_per_second"][str(count)]["decode"]["median"]
    step, least = least_seconds(config, own, count)
    rate = step * tokens / count
    found = result["llama_jax"].setdefault("reading", {})[str(count)] = {"bytes_per_second": rate}
    line = f"reading, {_streams(count)}: {rate / 1e9:.1f} GB/s of weights and caches"
    if plain is not None:
        found["of_plain_read"] = rate / plain
        return f"{line}, ratio {rate / plain:.2f} to a plain read ({plain / 1e9:.1f} GB/s)"
    if least is None:
        return f"{line}; no figures are known of a {own['device_kind']}"
    found["of_roofline"] = least * tokens / count
    return (
        f"{line}, ratio {found['of_roofline']:.2f} to the roofline of {own['devices']} x {own['device_kind']} "
        f"({count / least:,.0f} tokens/s)"
    )


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"
