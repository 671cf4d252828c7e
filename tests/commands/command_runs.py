"""Running the real commands, and reading what a run left behind."""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.settings.command_line import run_command

ROOT = Path(__file__).parents[2]

TIMING = {
    "step_seconds",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "model_flops_utilization",
    "data_wait_seconds",
    "goodput",
    "wall_seconds",
    "time",
}
"""What metrics.jsonl holds that two runs need not agree on."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    output: str
    errors: str


def call(*line: object) -> int:
    """Run a command, its name and its arguments, in this process on its 8 devices; returns the exit code."""
    command, *argv = map(str, line)
    name = command.split()[0]
    function = getattr(importlib.import_module(f"llama_jax.{name}"), name)
    return run_command(function, COMMANDS[command], command=command, commands=COMMANDS, presets=PRESETS, argv=argv)


@contextmanager
def started(
    *line: object, output: Path, devices: int = 1, xla_flags: str = "", zone: str | None = None
) -> Iterator[subprocess.Popen]:
    """A command that runs in a process of its own and prints into the files `output` and `output`.errors; it is killed
    at the end of the block if it still runs."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices} {xla_flags}",
    }
    if zone is not None:
        environment["TZ"] = zone
    command = [sys.executable, "-m", "llama_jax", *map(str, line)]
    with output.open("w") as out, _errors(output).open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen, output: Path, timeout: float = 600) -> Ended:
    """Wait for a command that was started."""
    code = process.wait(timeout)
    return Ended(code, output.read_text(), _COMPLAINTS.sub("", _errors(output).read_text()))


# JAX's CUDA plugin, with which tests compile for GPUs, says past every log level that there is no driver.
_COMPLAINTS = re.compile(r"^.*(Could not find cuda drivers|before absl::InitializeLog\(\)).*\n?", re.MULTILINE)


def _errors(output: Path) -> Path:
    return output.with_name(f"{output.name}.errors")


def run(*line: object, folder: Path, devices: int = 1) -> Ended:
    """Run a command in a process of its own; `folder` takes what it prints."""
    output = folder / "printed"
    with started(*line, output=output, devices=devices) as process:
        return ended(process, output)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def two_started(
    *line: object, folder: Path, xla_flags: str = "", zones: Sequence[str | None] = (None, None)
) -> Iterator[list[tuple[subprocess.Popen, Path]]]:
    """Two processes of one job with four devices each, each in its time zone, and the files they print into."""
    address = f"127.0.0.1:{free_port()}"
    job = [*line, "--distributed.coordinator", address, "--distributed.num_processes", 2]
    outputs = [folder / f"printed_{rank}" for rank in range(2)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                started(
                    *job, "--distributed.process_id", rank, output=output, devices=4, xla_flags=xla_flags, zone=zone
                )
            )
            for rank, (output, zone) in enumerate(zip(outputs, zones, strict=True))
        ]
        yield list(zip(processes, outputs, strict=True))


def run_two(
    *line: object, folder: Path, xla_flags: str = "", zones: Sequence[str | None] = (None, None)
) -> list[Ended]:
    """Run a command as two processes of one job with four devices each."""
    with two_started(*line, folder=folder, xla_flags=xla_flags, zones=zones) as job:
        return [ended(process, output) for process, output in job]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, without what need not be repeatable; each step must be there exactly once."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [{name: value for name, value in record.items() if name not in TIMING} for record in records]


def checkpoint(run_dir: Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of its arrays (fingerprints) and of its data position."""
    folder = run_dir / "checkpoints" / str(step)
    positions = {path.name: json.loads(path.read_text()) for path in (folder / "data").iterdir()}
    return {"leaves": json.loads((folder / "manifest.json").read_text())["leaves"], "positions": positions}


def steps(run_dir: Path) -> list[int]:
    """Steps that have a whole manifest, ascending."""
    found = []
    for path in (run_dir / "checkpoints").glob("*/manifest.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            continue
        found.append(int(path.parent.name))
    return sorted(found)


def copy_until(run_dir: Path, target: Path, kept: Sequence[int]) -> Path:
    """A copy of a run as if it had been killed a step after the last of the checkpoints `kept`."""
    shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "lock"))
    for step in kept:
        shutil.copytree(run_dir / "checkpoints" / str(step), target / "checkpoints" / str(step))
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (target / "metrics.jsonl").write_text("".join(lines[: max(kept) + 1]))
    return target
