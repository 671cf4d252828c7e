"""Running the real commands, and reading what a run left behind."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.command_line import run_command

ROOT = Path(__file__).parents[2]

TIMING = {
    "step_seconds",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "model_flops_utilization",
    "data_wait_seconds",
}
"""What metrics.jsonl holds that two runs need not agree on."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    output: str
    errors: str


def call(command: str, *arguments: object) -> int:
    """Run a command in this process, on its 8 devices; returns the exit code."""
    function = getattr(importlib.import_module(f"llama_jax.{command}"), command)
    presets = PRESETS if command == "pretrain" else None
    argv = [str(argument) for argument in arguments]
    return run_command(function, COMMANDS[command], command=command, commands=COMMANDS, presets=presets, argv=argv)


@contextmanager
def started(command: str, *arguments: object, output: Path, devices: int = 1) -> Iterator[subprocess.Popen]:
    """A command that runs in a process of its own and prints into the files `output` and `output`.errors; it is killed
    at the end of the block if it still runs."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    line = [sys.executable, "-m", "llama_jax", command] if command else [sys.executable, "-m", "llama_jax"]
    with output.open("w") as out, _errors(output).open("w") as errors:
        process = subprocess.Popen([*line, *map(str, arguments)], env=environment, stdout=out, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen, output: Path, timeout: float = 240) -> Ended:
    """Wait for a command that was started."""
    code = process.wait(timeout)
    return Ended(code, output.read_text(), _errors(output).read_text())


def _errors(output: Path) -> Path:
    return output.with_name(f"{output.name}.errors")


def run(command: str, *arguments: object, folder: Path, devices: int = 1) -> Ended:
    """Run a command in a process of its own; `folder` takes what it prints."""
    output = folder / "printed"
    with started(command, *arguments, output=output, devices=devices) as process:
        return ended(process, output)


def run_two(command: str, *arguments: object, folder: Path, devices: int = 4) -> list[Ended]:
    """Run a command as two processes of a job."""
    outputs = [folder / f"printed_{rank}" for rank in range(2)]
    job = [*arguments, *job_of_two()]
    with (
        started(command, *job, "--distributed.process_id", 0, output=outputs[0], devices=devices) as first,
        started(command, *job, "--distributed.process_id", 1, output=outputs[1], devices=devices) as second,
    ):
        return [ended(process, output) for process, output in zip((first, second), outputs, strict=True)]


def job_of_two() -> list[object]:
    """Arguments that two processes share, with a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    return ["--distributed.coordinator", address, "--distributed.num_processes", 2]


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
