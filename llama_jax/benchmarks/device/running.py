"""`benchmark all`: parts one after the other, each in a process of its own, so that its memory is free for the next one
and its crash is a line in the report; what is there is kept at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from etils import epath

from llama_jax.benchmarks.device.config import DeviceBenchmarkConfig
from llama_jax.benchmarks.device.machine import check_same, environment, has, machine, nvidia_smi
from llama_jax.benchmarks.device.parts import Part, parts_for
from llama_jax.benchmarks.device.table import summary_line, table
from llama_jax.core.errors import UserError, nearest
from llama_jax.core.files import write_whole
from llama_jax.diagnosis.watching import last_words

_PATIENCE = 4.0
"""A part that takes so many times as long as it should is stopped."""
_SAMPLED = ("clocks.sm", "power.draw", "temperature.gpu")
_SAMPLE_SECONDS = 5.0
Say = Callable[[str], None]


def measure_device(config: DeviceBenchmarkConfig) -> None:
    """Measure what is missing in the file, as far as the minutes allow, and print the table.

    Raises:
        UserError: JAX does not start, a part has no such name, or the file holds results of another machine.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr if config.json else sys.stdout, flush=True)

    started = time.monotonic()
    here = machine()
    device = here["device"]
    say(f"machine:  {device['count']} x {device['kind']} ({device['platform']}), jax {here['packages'].get('jax')}")
    parts = _wanted(parts_for(device["platform"]), config.parts)
    file = epath.Path(config.output)
    result = _begun(file, here, config.output)
    run_parts(parts, result, started + 60 * config.minutes, lambda: _keep(file, result), say)
    say(f"\n{table(result, parts_for(device['platform']))}\n\nkept in {file}")
    if config.json:
        print(json.dumps(result))


def run_parts(parts: Sequence[Part], result: dict[str, Any], end: float, keep: Callable[[], None], say: Say) -> None:
    """Measure the parts that `result` has not measured yet; those that failed before come last.

    Args:
        end: when nothing may run any more, by `time.monotonic`.
        keep: called whenever there is something new in `result`.
    """
    found = result["parts"]
    missing = [part for part in parts if found.get(part.name, {}).get("status") != "measured"]
    missing.sort(key=lambda part: found.get(part.name, {}).get("status") == "failed")
    for part in missing:
        left = end - time.monotonic()
        if lacking := has(part.needs):
            outcome = _left_out(f"{lacking} is not installed")
        elif left < part.seconds:
            outcome = _left_out(f"takes about {part.seconds:.0f} s, and {max(left, 0):.0f} s were left")
        else:
            say(f"{part.name}: about {part.seconds:.0f} s: llama-jax {' '.join(part.command)}")
            outcome = measured(part, min(left, _PATIENCE * part.seconds))
        if outcome["status"] == "left out" and found.get(part.name, {}).get("status") == "failed":
            continue  # what happened says more
        found[part.name] = outcome
        keep()
        took = f" ({outcome['seconds']:.0f} s)" if "seconds" in outcome else ""
        said = summary_line(part, result) if outcome["status"] == "measured" else outcome["reason"]
        say(f"{part.name}: {outcome['status']}{took}: {said}")


def measured(part: Part, limit: float) -> dict[str, Any]:
    """Run the command of a part for so many seconds at the most; what it prints as its last line, or why nothing."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        # Its own file is not kept; `doctor` writes none.
        own_file = () if part.kind == "numbers" else ("--output", folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_jax", *part.command, "--json", *own_file],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(),
            start_new_session=True,  # with its sides it is a group, which ends together
        )
        try:
            samples, in_time = _watched(process, started + limit)
        finally:
            _end(process)
        seconds = time.monotonic() - started
        outcome: dict[str, Any] = {"seconds": seconds, "command": ["llama-jax", *part.command], "date": _now()}
        outcome |= {"samples": samples} if samples else {}
        printed = _last_object(output)
        if printed is not None:
            return outcome | {"status": "measured", "result": _wanted_of(part, printed)}
        reason = last_words(errors, process.returncode) if in_time else f"stopped after {seconds:.0f} s"
        return outcome | {"status": "failed", "reason": reason}


def _watched(process: subprocess.Popen[Any], end: float) -> tuple[list[dict[str, str]], bool]:
    """What the GPU's clock and power were meanwhile, and whether the process ended in time."""
    samples = []
    while (left := end - time.monotonic()) > 0:
        try:
            process.wait(min(_SAMPLE_SECONDS, left))
            return samples, True
        except subprocess.TimeoutExpired:
            if sample := nvidia_smi(_SAMPLED):
                samples.append(sample)
    return samples, False


def _end(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_object(output: IO[str]) -> dict[str, Any] | None:
    output.seek(0)
    lines = output.read().strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _wanted_of(part: Part, printed: dict[str, Any]) -> dict[str, Any]:
    """Of `doctor` what it measured: the rest is about the machine, whose name and environment concern nobody."""
    if part.kind != "numbers":
        return printed
    kept = ("verdict", "numbers", "matmul_bfloat16", "matmul_float32", "memory_bandwidth")
    return {name: printed.get(name) for name in kept}


def _wanted(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    known = [part.name for part in parts]
    for name in names:
        if name not in known:
            raise UserError(f"--parts {name}: unknown here{nearest(name, known)}; there are {', '.join(known)}")
    return [part for part in parts if not names or part.name in names]


def _begun(file: epath.Path, here: dict[str, Any], output: str) -> dict[str, Any]:
    """What the file holds, or the beginning of it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return {"machine": here, "date": _now(), "parts": {}}
    try:
        result = json.loads(file.read_text())
        check_same(result["machine"], here, output)
        return {**result, "parts": dict(result["parts"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--output {output}: is not a file of 'benchmark all'; give another one") from None


def _left_out(reason: str) -> dict[str, Any]:
    return {"status": "left out", "reason": reason}


def _keep(file: epath.Path, result: dict[str, Any]) -> None:
    write_whole(file, json.dumps(result, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
