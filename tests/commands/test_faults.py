"""Jobs of several processes, one of which fails: nobody hangs, the reports name it, and under a supervisor the run goes
on to the bits of one in which nothing failed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from command_runs import ROOT, Ended, ended, free_port, metrics, run, steps
from made_once import made_once
from test_grpo import arguments_of, untimed, written
from test_run_tpu_local import children
from tpu_stand_in import SCRIPT

pytestmark = pytest.mark.slow

STEPS, AT = 12, 9
SHORT = ("--training.steps", STEPS, "--training.schedule_steps", 30, "--training.evaluate_every", 6)
STEP_SECONDS, HEARTBEAT_SECONDS, OF_AN_ERROR = 6, 6, 0
"""After which a fault is noticed, at the latest; everything is over 5 seconds later."""
SUPERVISED = (
    *("--supervise.restarts", 4, "--supervise.pause_seconds", 1, "--supervise.step_seconds", STEP_SECONDS),
    *("--distributed.heartbeat_seconds", HEARTBEAT_SECONDS, "--distributed.timeout_seconds", 120),
)


@contextmanager
def job(processes: int, *command: object, folder: Path, **faults: str) -> Iterator[subprocess.Popen]:
    """`run_tpu.sh --local` with a command, in which processes fail as `faulty/sitecustomize.py` is told to."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{Path(__file__).parent / 'faulty'}:{ROOT}",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "TMPDIR": str(folder),
        **faults,
    }
    arguments = [SCRIPT, "--local", str(processes), "--", *map(str, command)]
    with (folder / "printed").open("w") as output, (folder / "printed.errors").open("w") as errors:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        for pid in children(process):  # each leads a group of its own
            os.killpg(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def job_ended(processes: int, *command: object, folder: Path, fault: str = "") -> Ended:
    faults = {"FAULTS": f"{fault}:{folder / 'failed'}"} if fault else {}
    with job(processes, *command, folder=folder, **faults) as process:
        return ended(process, folder / "printed")


@pytest.fixture(scope="session")
def uninterrupted(small_run, tmp_path_factory) -> dict[int, Path]:
    """Runs in which nothing failed, by the number of processes."""

    def make(folder: Path, processes: int) -> None:
        result = job_ended(
            processes, "pretrain", *small_run.arguments, *SHORT, "--run_dir", folder / "run", folder=folder
        )
        assert result.code == 0, result

    return {
        processes: made_once(tmp_path_factory, f"unfailing_{processes}", partial(make, processes=processes)) / "run"
        for processes in (2, 4)
    }


def reports(run_dir: Path) -> str:
    return "".join(path.read_text() for path in sorted((run_dir / "faults").iterdir()))


def seconds_until_all_had_left(run_dir: Path, failed: Path) -> float:
    """From a fault until the last process was seen to have ended by its supervisor, which says so to the second."""
    times = re.findall(r"^([-\d]+ [\d:]+) .*; starting again in 1 s", reports(run_dir), re.MULTILINE)
    last = max(datetime.fromisoformat(f"{time}+00:00").timestamp() for time in times)
    return last - failed.stat().st_mtime


FAULTS = {
    "one is killed": ("killed", 1, OF_AN_ERROR, r"process {rank} of {count}, step .*: was ended by SIGKILL"),
    "the coordinator is killed": ("killed", 0, OF_AN_ERROR, r"process 0 of {count}, step .*: was ended by SIGKILL"),
    "one is stopped": ("stopped", 1, HEARTBEAT_SECONDS, r"; process {rank}, step .*, is silent"),
    "the coordinator is stopped": ("stopped", 0, HEARTBEAT_SECONDS, r"; process 0, step .*, is silent"),
    "one is stuck": (
        "stuck",
        1,
        STEP_SECONDS,
        r"process 0 of .*; process {rank}, step 9, is behind\n(.*\n)*.*time.sleep",
    ),
    "the coordinator is stuck": ("stuck", 0, STEP_SECONDS, r"; process 0, step 9, is behind\n(.*\n)*.*time.sleep"),
    "one holds Python's lock": ("locked", 1, HEARTBEAT_SECONDS, r"; process {rank}, step .*, is silent"),
    "one raises an error": ("broken", 1, OF_AN_ERROR, r"process {rank} of {count}, step .*: ended with exit code 1"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", FAULTS)
def test_the_job_ends_in_time_says_why_and_goes_on_to_the_same_bits(
    case, processes, uninterrupted, small_run, tmp_path
):
    how, rank, noticed, said = FAULTS[case]
    rank *= processes - 1
    run_dir = tmp_path / "run"
    command = ("pretrain", *small_run.arguments, *SHORT, *SUPERVISED, "--run_dir", run_dir)
    result = job_ended(processes, *command, folder=tmp_path, fault=f"{how}:{rank}:{AT}")
    assert result.code == 0, result
    seconds = seconds_until_all_had_left(run_dir, tmp_path / "failed")
    print(f"{case}, {processes} processes: all had left after {seconds:.1f} s")
    assert re.search(said.format(rank=rank, count=processes), reports(run_dir)), reports(run_dir)
    assert re.search("resuming from step [36]\n", result.output)
    assert metrics(run_dir) == metrics(uninterrupted[processes])
    assert seconds <= noticed + 5


def test_a_request_to_stop_one_process_of_a_supervised_job_stops_all_at_the_same_step(
    uninterrupted, small_run, tmp_path
):
    run_dir = tmp_path / "run"
    command = ("pretrain", *small_run.arguments, *SHORT, *SUPERVISED, "--run_dir", run_dir)
    result = job_ended(4, *command, folder=tmp_path, fault=f"asked:2:{AT - 1}")
    assert result.code == 75, result
    last = metrics(run_dir)[-1]["step"]
    assert AT - 1 <= last < STEPS and steps(run_dir)[-1] == last
    assert f"interrupted: saved step {last} of {STEPS};" in result.errors
    assert not (run_dir / "faults").exists()
    result = job_ended(4, *command, folder=tmp_path)
    assert result.code == 0, result
    assert metrics(run_dir) == metrics(uninterrupted[4])


def test_a_process_that_never_comes_is_named(small_run, tmp_path):
    run_dir, seconds = tmp_path / "run", 5
    alone = ("--distributed.coordinator", f"127.0.0.1:{free_port()}", "--distributed.num_processes", 3)
    limits = ("--distributed.timeout_seconds", seconds, "--supervise.restarts", 1, "--supervise.pause_seconds", 0)
    command = ("pretrain", *small_run.arguments, *alone, "--distributed.process_id", 0, *limits, "--run_dir", run_dir)
    result = run(*command, folder=tmp_path)
    assert result.code == 1, result
    missing = rf"processes 1, 2 did not come to [\d.:]+ within {seconds} s \(distributed.timeout_seconds\)"
    assert len(re.findall(f"^error: {missing}$", result.errors, re.MULTILINE)) == 2
    first, second = re.findall(f"^(.*) process 0 of 3, {missing}: ended with exit code 1", reports(run_dir), re.M)
    took = (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()
    print(f"one life took {took:.0f} s, start-up among it")


def test_an_iteration_of_grpo_that_hangs_is_made_again_to_the_same_bits(small_run, tmp_path):
    arguments = ["grpo", *arguments_of(small_run.run_dir, written(tmp_path))]
    assert run(*arguments, "--run_dir", tmp_path / "unfailing", folder=tmp_path).code == 0
    limits = ("--supervise.restarts", 1, "--supervise.pause_seconds", 0, "--supervise.step_seconds", 20)
    command = (*arguments, *limits, "--run_dir", tmp_path / "run")
    result = job_ended(1, *command, folder=tmp_path, fault="stuck:0:3")
    assert result.code == 0, result
    assert "process 0 of 1, step 3: nothing for 20 s (supervise.step_seconds)\n" in reports(tmp_path / "run")
    assert "resuming from step 2\n" in result.output
    assert untimed(tmp_path / "run") == untimed(tmp_path / "unfailing")
