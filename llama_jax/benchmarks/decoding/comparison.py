"""`benchmark decode`: the engine, and another program with the same weights if asked for, in alternating turns, each in
a process of its own. The process that compares them must not start JAX."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.against import check_packages
from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.decoding.report import report
from llama_jax.benchmarks.decoding.task import Task, rates
from llama_jax.benchmarks.exported import exported
from llama_jax.benchmarks.results import say
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import to_yaml

_OTHERS = {
    "transformers": ("transformers_side", "hf", ("torch", "transformers")),
    "llama.cpp": ("llama_cpp_side", "gguf", ("xllamacpp", "gguf")),
}
"""Module of the other side, the format it opens, and the packages it takes."""

_LEAST_AGREED = 4
"""Greedy tokens that must be the same on both sides; after some more, rounding may decide."""


def measure_decoding(config: BenchmarkConfig, own_side: str) -> dict[str, Any]:
    """All sides in turns.

    Args:
        own_side: `module:function` that serves our side, see `turns.sides`; its task is the command and its config as
            YAML.

    Raises:
        UserError: a package of the other side is missing, or our side refuses the settings.
    """
    programs = {"plain read": "llama_jax.benchmarks.decoding.reading:main", "llama_jax": own_side}
    if config.against is not None:
        programs[config.against] = f"llama_jax.benchmarks.decoding.{_OTHERS[config.against][0]}:main"
    with _exported(config) as weights, turns.sides(programs) as (reader, *sides):
        # One after the other, so that neither compiles while the other warms up.
        own = sides[0].prepare(["benchmark", to_yaml(config)])
        facts = {"llama_jax": own}
        if config.against is not None:
            task = Task(str(weights), own["sample"], config.prompt_tokens, config.new_tokens, config.decode_rows)
            facts[config.against] = sides[1].prepare(dataclasses.asdict(task))
        for name, each in facts.items():
            say(config, f"{name}: {each['what']}")
        _check_agreement(config, facts)
        readers = []
        if own["platform"] == "cpu":
            reader.prepare(own["weights_bytes_read"])
            readers = [reader]
        return report(config, facts, _measured(config, sides, readers), sides, reader.seconds)


def _measured(
    config: BenchmarkConfig, sides: Sequence[turns.Side], readers: Sequence[turns.Side]
) -> dict[str, dict[int, list[dict[str, float]]]]:
    """For each side and number of streams the rates of each turn; those that read take turns too."""
    measured: dict[str, Any] = {side.name: {streams: [] for streams in config.streams} for side in sides}
    for number in range(config.turns):
        for streams in config.streams:
            for side in sides:
                found = rates(side.take_turn(streams), config.prompt_tokens)
                measured[side.name][streams].append(found)
                say(
                    config,
                    f"turn {number + 1:>2}, {streams:>3} x {config.prompt_tokens} tokens, {side.name:>12}: decode "
                    f"{found['decode']:>9,.1f}, prefill {found['prefill']:>9,.1f} tokens/s",
                )
        for reader in readers:
            reader.take_turn(1)
    return measured


def _check_agreement(config: BenchmarkConfig, facts: dict[str, dict[str, Any]]) -> None:
    if config.against is None:
        return
    own, other = (facts[name]["sample_answer"] for name in ("llama_jax", config.against))
    same = next((place for place, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), len(own))
    if same < min(_LEAST_AGREED, len(own)):
        raise RuntimeError(f"the two sides do not hold the same model: they write {own} and {other}")
    say(config, f"the first {same} of {len(own)} greedy tokens are the same on both sides")


@contextmanager
def _exported(config: BenchmarkConfig) -> Iterator[Path]:
    """The weights in float32, in the format of the other side."""
    if config.against is None:
        yield Path()
        return
    if config.weights is None:
        raise UserError(f"--against {config.against}: needs --weights, a model that both sides open")
    _, form, packages = _OTHERS[config.against]
    check_packages(config, packages)
    with exported(config.weights, form, config.against, lambda line: say(config, line)) as target:
        yield target
