"""`run_tpu.sh --local`: a command as several processes of one job on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from command_runs import ROOT, Ended, metrics, run, steps
from made_once import made_once
from tpu_stand_in import SCRIPT

SHORT = ("--training.steps", 8, "--training.schedule_steps", 30)
LONG = ("--training.steps", 20000, "--training.evaluate_every", 20000)
MOST = 2e-6
"""Largest relative difference of a loss."""


@contextmanager
def started(processes: int, *command: object, folder: Path, devices: int = 1) -> Iterator[subprocess.Popen]:
    """The script with a command as so many processes of `devices` devices, in a process group of its own."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "TMPDIR": str(folder),
        "LEAVE_SECONDS": "2",
    }
    arguments = [SCRIPT, "--local", str(processes), "--", *map(str, command)]
    with (folder / "printed").open("w") as output, (folder / "errors").open("w") as errors:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        for pid in children(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def ended(process: subprocess.Popen, folder: Path) -> Ended:
    code = process.wait(timeout=600)
    return Ended(code, (folder / "printed").read_text(), (folder / "errors").read_text())


def children(process: subprocess.Popen) -> list[int]:
    """The processes that the script has started and that still run, by rank."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in listed.read_text().split()] if listed.exists() else []
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids}
    ranks = {pid: int(line[-2]) for pid, line in lines.items() if b"--distributed.process_id" in line}
    return sorted(ranks, key=lambda pid: ranks[pid])


def wait_for_a_step(process: subprocess.Popen, run_dir: Path) -> None:
    recorded = run_dir / "metrics.jsonl"
    while not recorded.exists() or recorded.stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one_process(small_run, tmp_path_factory) -> list[float]:
    """The losses of a run of one process with four devices."""

    def make(folder: Path) -> None:
        result = run("pretrain", *small_run.arguments, *SHORT, "--run_dir", folder / "run", folder=folder, devices=4)
        assert result.code == 0, result

    folder = made_once(tmp_path_factory, "one_process", make)
    return [record["loss"] for record in metrics(folder / "run")]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_losses_of_one(processes, one_process, small_run, tmp_path):
    command = ("pretrain", *small_run.arguments, *SHORT, "--run_dir", tmp_path / "run")
    with started(processes, *command, folder=tmp_path, devices=4 // processes) as job:
        result = ended(job, tmp_path)
    assert result.code == 0, result
    assert f"process 0 of {processes}, 4 devices (cpu)" in result.output
    assert "process 1 of" not in result.output
    losses = [record["loss"] for record in metrics(tmp_path / "run")]
    differences = np.abs(np.array(losses) / np.array(one_process) - 1)
    print("relative differences of the losses:", *(f"{difference:.1e}" for difference in differences))
    assert len(losses) == 8 and differences.max() <= MOST, differences
    assert not list(tmp_path.glob("tmp.*"))  # logs that nobody needs


@pytest.mark.slow
def test_when_one_process_is_killed_all_end_with_its_exit_code(small_run, tmp_path):
    command = ("pretrain", *small_run.arguments, *LONG, "--run_dir", tmp_path / "run")
    with started(2, *command, folder=tmp_path) as job:
        wait_for_a_step(job, tmp_path / "run")
        first, second = children(job)
        os.kill(second, signal.SIGKILL)
        result = ended(job, tmp_path)
        assert not Path(f"/proc/{first}").exists()
    assert result.code == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with exit code 137\n" in result.errors
    assert "process 1 of 2: joining" in result.errors  # what it had printed
    [logs] = tmp_path.glob("tmp.*")
    assert f"what the other processes printed is in {logs}\n" in result.errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_script_makes_all_processes_save_and_leave(number, small_run, tmp_path):
    command = ("pretrain", *small_run.arguments, *LONG, "--run_dir", tmp_path / "run")
    with started(2, *command, folder=tmp_path) as job:
        wait_for_a_step(job, tmp_path / "run")
        os.killpg(job.pid, number)  # as Ctrl-C on a terminal does
        result = ended(job, tmp_path)
    assert result.code == 75, result
    made = metrics(tmp_path / "run")[-1]["step"]
    assert f"interrupted: saved step {made} of 20000;" in result.errors
    assert steps(tmp_path / "run")[-1] == made


@pytest.mark.parametrize(("on_signal", "leave_seconds"), [("exit 4", 100_000), (":", 1)], ids=["goes", "stays"])
def test_processes_that_wait_for_one_that_failed_are_ended(on_signal, leave_seconds, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/bash
        if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
        if [[ ${{@: -1}} == 1 ]]; then echo broken; exit 5; fi
        trap '{on_signal}' TERM
        echo $$ > {tmp_path}/waits
        while true; do read -t 0.1 < <(tail -f /dev/null) || true; done
    """)
    python.chmod(0o755)
    command = [SCRIPT, "--local", "2", "--", "pretrain"]
    environment = os.environ | {"PYTHON": str(python), "LEAVE_SECONDS": str(leave_seconds)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 5, result
    assert result.stderr.startswith("process 1 of 2 ended with exit code 5\nbroken\n")
    assert not Path("/proc", (tmp_path / "waits").read_text().strip()).exists()


def test_a_mistake_is_shown_once_with_its_exit_code(tmp_path):
    with started(3, "pretrain", "--training.stepz", 3, folder=tmp_path) as job:
        result = ended(job, tmp_path)
    assert result.code == 2, result
    assert "did you mean 'training.steps'" in result.errors


def test_a_dry_run_prints_the_processes_and_starts_none(tmp_path):
    command = [SCRIPT, "--local", "2", "--dry_run", "--", "pretrain", "--run_dir", "my run"]
    result = subprocess.run(command, env=os.environ | {"PYTHON": "true"}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    coordinator = "--distributed.coordinator 127.0.0.1:PORT --distributed.num_processes 2"
    assert result.stdout.splitlines() == [
        f"true -m llama_jax pretrain --run_dir 'my run' {coordinator} --distributed.process_id {rank}"
        for rank in range(2)
    ]


@pytest.mark.slow
def test_two_processes_go_back_together(tmp_path):
    """With a learning rate at which everything diverges, until they may no more; replicas are compared meanwhile."""
    rollback = {"skipped_updates": 3, "window": 10, "steps_before": 2, "batches": 20, "times": 2}
    settings = {
        "training.peak_learning_rate": 30,
        "training.warmup_steps": 20,
        "training.fingerprint_every": 5,
        "checkpoints.every": 10,
        "mesh.data": 2,
        **{f"training.rollback.{name}": value for name, value in rollback.items()},
    }
    line = [part for name, value in settings.items() for part in (f"--{name}", value)]
    command = ("pretrain", "--config", "tiny/pretrain", "--run_dir", tmp_path / "run", *line)
    with started(2, *command, folder=tmp_path, devices=2) as process:
        found = ended(process, tmp_path)
    assert found.code == 1, found
    assert found.output.count(" of at most 2)\n") == 2 and found.output.count("going on from step ") == 2
    assert "after 2 rollbacks (training.rollback.times)" in found.errors
    assert metrics(tmp_path / "run")[-1]["rollbacks"] == 2
    assert not (tmp_path / "run" / "faults").exists()
