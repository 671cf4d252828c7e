"""`run_tpu.sh --keep_going` against a stand-in for gcloud: what it does about a TPU that is taken away, a host that is
lost, a command that fails, and when it gives up."""

import os
import signal
from pathlib import Path

import pytest
from command_runs import Ended
from tpu_stand_in import EVERYTHING, NEW, TPU, Cloud, cloud_in, following

STARTED = ["buckets", "describe", *NEW, "ls"]
"""What comes before the log is followed for the first time."""

ON_HOST_0 = '[[ $HOST == host-0 ]] || exec tail -f /dev/null; N=$(grep -c . "$CLOUD/jobs-of-host-0");'
"""The part of a job that only host 0 gets past. N: which of its starts this is."""


def kept_going(tmp_path: Path, job: str, *options: object, **plan: list[str]) -> tuple[Cloud, Ended]:
    """A job of host 0, kept going to its end."""
    with cloud_in(tmp_path / "cloud", ON_HOST_0 + job) as cloud:
        cloud.plan(**plan)
        return cloud, cloud.run("--keep_going", *options, *EVERYTHING)


def waits(cloud: Cloud) -> list[int]:
    """The seconds before each restart."""
    path = cloud.folder / "sleeps"
    return [int(line) for line in path.read_text().split() if int(line) >= 60] if path.exists() else []


def test_a_tpu_that_was_taken_away_is_deleted_and_created_until_that_succeeds_and_the_run_resumes(tmp_path):
    job = '((N == 1)) || { echo resumed; exit; }; echo 100 >> "$CLOUD/saved"; seq 3; exec tail -f /dev/null'
    create = ["well", "quota", "quota", "well"]
    cloud, result = kept_going(tmp_path, job, "--spot", "--delete", host_follow=["preempt", "well"], create=create)
    assert (result.code, result.output) == (0, "1\n2\nresumed\n"), result
    assert cloud.stages() == [
        *STARTED,
        *["host_follow", "describe", "ls"],  # taken away
        *["describe", "describe", "delete", "create", "ls"],  # deleted first; no quota yet
        *["describe", "describe", "create", "ls"],
        *["describe", "describe", *NEW, "host_follow"],
        "delete",
    ]
    assert waits(cloud) == [60, 120, 240]
    assert (cloud.folder / "tpu").read_text() == "" and "costs money" not in result.errors
    first, second = cloud.jobs(0)
    assert first == second
    assert "--spot" in [call for call in cloud.calls() if "create" in call][-1]
    packed = cloud.folder / "home" / ".cache" / "llama_jax" / "llama" / "llama_jax.tar.gz"
    assert packed.stat().st_mtime_ns < (cloud.folder / "sleeps").stat().st_mtime_ns  # the code that it began with


@pytest.mark.slow
def test_a_tpu_that_lost_a_host_is_deleted_and_created(tmp_path):
    cloud, result = kept_going(tmp_path, '((N == 1)) || exit 0; echo host-1 > "$CLOUD/unreachable"; exit 1')
    assert result.code == 0, result
    assert cloud.stages() == [
        *STARTED,
        *["host_follow", "host_status", "ls"],
        *["describe", "host_runs", "host_stop"],  # it is there, but not all of it answers
        *["delete", "describe", *NEW, "host_follow"],
    ]


def test_a_command_that_fails_is_started_again_where_it_was_as_long_as_it_gets_on(tmp_path):
    """75 without the step `stop`: its machine had notice that it goes away."""
    job = '((N == 3)) || echo $((100 * N)) >> "$CLOUD/saved"; exit $((N == 1 ? 75 : 134))'
    cloud, result = kept_going(tmp_path, job, "--restarts", 1)
    assert result.code == 134, result
    failed = ["host_follow", "host_status", "ls"]
    again = ["describe", "host_runs", "host_stop", "scp", "host_install", "host_start"]
    assert cloud.stages() == [*STARTED, "host_follow", "ls", *again, *failed, *again, *failed]
    assert waits(cloud) == [60, 60]
    assert "restart 1 of at most 1 in 60 s (newest checkpoint: 200)\n" in result.errors
    assert "error: --keep_going: no newer checkpoint (restarts: 1; newest: 200); giving up\n" in result.errors


@pytest.mark.slow
def test_a_command_that_gets_nowhere_is_given_up_after_another_tpu_was_tried(tmp_path):
    cloud, result = kept_going(tmp_path, "exit 3", "--restarts", 6, "--delete")
    assert result.code == 3
    assert waits(cloud) == [60, 120, 240, 480, 900, 900]
    started = [stage for stage in cloud.stages() if stage in ("create", "host_start", "delete")]
    another = ["delete", "create", "host_start"]
    assert started == ["create", *["host_start"] * 3, *another * 4, "delete"]
    assert "giving up\n" in result.errors and "costs money" not in result.errors


def test_a_mistake_ends_it(tmp_path):
    cloud, result = kept_going(tmp_path, "exit 2")
    assert (result.code, len(cloud.jobs(0)), waits(cloud)) == (2, 1, []), result


@pytest.mark.slow
def test_a_tpu_that_somebody_deleted_is_not_created_again(tmp_path):
    cloud, result = kept_going(tmp_path, "seq 3; exec tail -f /dev/null", host_follow=["vanish"])
    assert result.code == 1 and cloud.stages().count("create") == 1, result
    assert result.errors.endswith("error: --keep_going: llama was deleted by somebody else; giving up\n")


@pytest.mark.slow
def test_a_job_that_only_the_log_was_lost_of_is_left_running(tmp_path):
    job = 'while (($(grep -c host_follow "$CLOUD/calls") < 21)); do read -t 0.05 < <(tail -f /dev/null) || true; done'
    cloud, result = kept_going(tmp_path, job, host_follow=[*["fail"] * 20, "well"])
    assert (result.code, len(cloud.jobs(0))) == (0, 1), result
    assert cloud.stages()[-4:] == ["ls", "describe", "host_runs", "host_follow"]


WAITS = "echo ready; until [[ -e $CLOUD/go ]]; do read -t 0.05 < <(tail -f /dev/null) || true; done"


@pytest.mark.slow
def test_the_step_stop_ends_it(tmp_path):
    with cloud_in(tmp_path / "cloud", f"trap 'exit 75' TERM; {WAITS}") as cloud:
        process = following(cloud, "--keep_going", *EVERYTHING)
        assert cloud.run("stop", *TPU).code == 0
        result = cloud.ended(process)
    assert (result.code, len(cloud.jobs(0)), waits(cloud)) == (75, 1, []), result


@pytest.mark.slow
def test_the_same_command_again_follows_what_runs(tmp_path):
    with cloud_in(tmp_path / "cloud", WAITS) as cloud:
        first = following(cloud, "--keep_going", *EVERYTHING)
        os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
        assert cloud.ended(first).code == 130
        second = following(cloud, "--keep_going", *EVERYTHING)
        (cloud.folder / "go").touch()
        result = cloud.ended(second)
    assert (result.code, len(cloud.jobs(0))) == (0, 1), result
    assert "llama runs pretrain already\n" in result.errors
