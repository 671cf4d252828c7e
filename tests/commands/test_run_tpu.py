"""run_tpu.sh against a stand-in for gcloud: what it calls, what it says when a call fails, what it leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
from command_runs import ROOT
from tpu_stand_in import EVERYTHING, HOSTS, NEW, NEW_TPU, SCRIPT, TPU, cloud_in, following, installed, option

ALL_STAGES = ["buckets", "describe", *NEW, "host_follow"]
LEFT = (
    "llama still exists and costs money; to remove it: "
    "gcloud compute tpus queued-resources delete llama --project=mine --zone=us-central1-a --force --quiet\n"
)


@pytest.fixture
def cloud(tmp_path):
    with cloud_in(tmp_path / "cloud") as stand_in:
        yield stand_in


def test_shellcheck_finds_nothing():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    result = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_everything_is_done_in_order_on_every_host(cloud):
    result = cloud.run(*EVERYTHING)
    assert (result.code, result.output) == (0, "first\nsecond\n"), result
    assert cloud.stages() == ALL_STAGES
    assert result.errors.endswith(LEFT)
    job = ["-u", "-m", "llama_jax", "pretrain", "--config", "tiny/pretrain", "--run_dir", "gs://bucket/llama"]
    for host in range(HOSTS):
        assert cloud.jobs(host) == [[str(cloud.on_host(host)), *job]]
        assert cloud.on_host(host, "llama_jax", "pretrain.py").exists()
        assert f"[host-{host}] started" in result.errors
        installation = (cloud.folder / f"host-{host}" / "uv").read_text()
        assert installation.endswith("pip install --quiet --python .venv/bin/python --editable .[tpu,gcp]\n")
    assert all(option(call, "project") == "mine" for call in cloud.calls())
    assert all(option(call, "zone") == "us-central1-a" for call in cloud.calls()[1:])


def test_delete_at_the_end_leaves_nothing(cloud):
    result = cloud.run("--delete", *EVERYTHING)
    assert result.code == 0, result
    assert cloud.stages() == [*ALL_STAGES, "delete"]
    assert {"--force", "--quiet"} <= set(cloud.calls()[-1])
    assert "costs money" not in result.errors


@pytest.mark.parametrize("options", [(), ("--spot", "--delete", "--source", "git+https://host/it@main")])
def test_a_dry_run_calls_nothing_and_prints_what_is_called_and_can_be_pasted(options, tmp_path):
    arguments = (*options, *EVERYTHING, "--data.source", "a b/it's $HOME")
    with cloud_in(tmp_path / "real") as real, cloud_in(tmp_path / "pasted") as pasted:
        assert real.run(*arguments).code == 0
        printed = pasted.run("--dry_run", *arguments)
        assert (printed.code, printed.errors, pasted.calls()) == (0, "", [])
        # The second look at the queued resource stands for waiting; the first answers that there is none.
        subprocess.run(["bash", "-c", printed.output], env=pasted.environment, check=True, capture_output=True)
        there = str(real.folder), str(pasted.folder)
        expected = [[word.replace(*there) for word in call] for call in real.calls()]
        assert pasted.calls() == expected
        assert [line.split()[0] for line in printed.output.splitlines()].count("gcloud") == len(expected)


@pytest.mark.parametrize("step", ["create", "install", "run", "follow", "stop", "delete"])
def test_a_dry_run_of_a_step_prints_calls_of_gcloud_and_makes_none(step, cloud):
    command = EVERYTHING[len(NEW_TPU) :] if step == "run" else ()
    result = cloud.run(step, *NEW_TPU, "--dry_run", *command)
    assert (result.code, result.errors, cloud.calls()) == (0, "", []), result
    assert "gcloud " in result.output


def test_arguments_reach_every_host_as_they_were_written(cloud):
    arguments = [
        "a  b",
        "it's",
        '"q"',
        "$HOME",
        "`id`",
        "*",
        "",
        "a;b|c&",
        "\\",
        "é",
        "two\nlines\ttab",
        "--x=1 2",
        "!",
    ]
    assert installed(cloud).run("run", *TPU, "--", "convert", *arguments).code == 0
    assert cloud.run("follow", *TPU).code == 0
    for host in range(HOSTS):
        [[_, *job]] = cloud.jobs(host)
        assert job[4:] == arguments


FAILURES = {
    "buckets": ("error: --bucket: gs://bucket cannot be opened; nothing was created\n", ""),
    "describe": ("error: create: cannot ask for the state of llama\n", ""),
    "create": (
        "error: create: gcloud could not ask for llama (v5litepod-16)\n",
        LEFT.replace("still exists and costs money", "may exist after all"),
    ),
    "scp": ("error: install: cannot copy to the hosts of llama\n", LEFT),
    "host_install": ("error: install: not every host of llama has installed it\n", LEFT),
    "host_start": ("error: run: not every host of llama has started pretrain\n", LEFT),
    "host_follow": (
        "error: follow: host 0 of llama cannot be reached; its job may still be running, and the step follow finds it "
        "again\n",
        LEFT,
    ),
}


SLOW = {"host_follow": pytest.mark.slow}  # twenty tries


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=SLOW.get(stage, ())) for stage in FAILURES])
def test_a_failure_of_gcloud_is_passed_on_with_what_is_left_behind(stage, cloud):
    cloud.plan(**{stage: ["fail"]})
    result = cloud.run(*EVERYTHING)
    assert result.code == 1
    assert f"ERROR: (gcloud) made-up failure of {stage}\n" in result.errors
    error, left = FAILURES[stage]
    assert result.errors.endswith(error + left), result.errors
    assert set(cloud.stages()) <= set(ALL_STAGES[: ALL_STAGES.index(stage) + 1]) | {"describe"}


@pytest.mark.parametrize(("step", "stage"), [("stop", "host_stop"), ("delete", "delete")])
def test_a_failure_of_stop_and_delete_says_that_the_tpu_costs_money(step, stage, cloud):
    cloud.plan("ACTIVE", **{stage: ["fail"]})
    result = cloud.run(step, *TPU)
    assert result.code == 1
    assert f"made-up failure of {stage}\nerror: {step}: " in result.errors
    assert re.search(r"llama (still exists|may still exist) and costs? money; to remove it: gcloud", result.errors)


@pytest.mark.parametrize("stage", ["create", "scp", "host_install", "host_start"])
def test_with_delete_a_failed_step_leaves_no_tpu_behind(stage, cloud):
    cloud.plan(**{stage: ["fail"]})
    result = cloud.run("--delete", *EVERYTHING)
    assert result.code == 1 and cloud.stages()[-1] == "delete"
    assert "to remove it" not in result.errors


@pytest.mark.slow
def test_with_delete_a_job_that_is_out_of_reach_is_left_alone(cloud):
    cloud.plan(host_follow=["fail"])
    result = cloud.run("--delete", *EVERYTHING)
    assert result.code == 1 and "delete" not in cloud.stages()
    assert result.errors.endswith(LEFT)


def test_the_request_is_waited_for_even_when_a_look_at_it_fails(cloud):
    cloud.plan("NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", describe=["well", "fail", "well"])
    result = cloud.run("create", *NEW_TPU)
    assert result.code == 0, result
    assert cloud.stages() == ["describe", "create", *["describe"] * 4]
    assert "llama is WAITING_FOR_RESOURCES; waiting at most 720 minutes\nllama is PROVISIONING" in result.errors
    assert result.errors.endswith(LEFT)


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "DELETING"])
def test_a_request_that_came_to_nothing_ends_the_wait_and_says_why(state, cloud):
    cloud.plan("NOT_FOUND", "PROVISIONING", state)
    result = cloud.run(*EVERYTHING)
    assert result.code == 1 and "no capacity" in result.errors
    assert f"error: create: llama is {state}; delete it, then run the same command again\n" in result.errors
    assert "to remove it: gcloud compute tpus queued-resources delete llama" in result.errors


def test_the_wait_ends_and_the_request_lapses(cloud):
    cloud.plan("NOT_FOUND", "WAITING_FOR_RESOURCES")
    result = cloud.run("create", *NEW_TPU, "--wait_minutes", 3)
    assert result.code == 1
    assert "error: create: llama is still WAITING_FOR_RESOURCES after 3 minutes\n" in result.errors
    assert option(cloud.calls()[1], "valid-until-duration") == "3m"
    assert (cloud.folder / "sleeps").read_text() == "30\n" * 6


def test_a_tpu_that_is_there_is_used(cloud):
    cloud.plan("ACTIVE")
    result = cloud.run(*EVERYTHING)
    assert result.code == 0 and "create" not in cloud.stages()
    assert "llama already exists (ACTIVE)\n" in result.errors


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-1024", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
        ("v4-512", "tpu-ubuntu2204-base"),
    ],
)
def test_every_type_gets_its_image(accelerator, version, cloud):
    assert cloud.run("create", *TPU, "--type", accelerator).code == 0
    call = cloud.calls()[1]
    assert (option(call, "accelerator-type"), option(call, "runtime-version")) == (accelerator, version)
    assert option(call, "node-id") == "llama" and "--spot" not in call


def test_a_package_from_elsewhere_is_not_hidden_by_this_checkout(cloud):
    cloud.plan("ACTIVE")
    assert cloud.run("install", *TPU, "--source", "git+https://host/it@main").code == 0
    assert not cloud.on_host(0, "llama_jax").exists() and cloud.on_host(0, "configs").exists()
    installation = (cloud.folder / "host-0" / "uv").read_text()
    assert installation.endswith("llama_jax[tpu,gcp] @ git+https://host/it@main\n")


def test_a_dropped_connection_loses_no_line_and_shows_none_twice(tmp_path):
    lines = [f"step  {number}" for number in range(1, 8)]
    with cloud_in(tmp_path / "cloud", f"printf '%s\\n' {' '.join(map(repr, lines))}") as cloud:
        installed(cloud)
        assert cloud.run("run", *TPU, "--", "convert").code == 0
        cloud.plan("ACTIVE", host_follow=["drop", "fail", "repeat", "well"])
        result = cloud.run("follow", *TPU)
    assert (result.code, result.output.splitlines()) == (0, lines), result
    assert [option(call, "command")[-1] for call in cloud.calls() if "--worker=0" in call] == list("022")
    assert result.errors.count("the connection to host 0 of llama is lost; connecting again") == 2


def test_a_tpu_that_was_taken_away_ends_the_following(cloud):
    installed(cloud).plan("SUSPENDED", host_follow=["fail"])
    result = cloud.run("follow", *TPU)
    assert result.code == 1
    assert "error: follow: llama is SUSPENDED: it was taken away or deleted\n" in result.errors


def test_a_failure_on_another_host_is_shown_with_the_exit_code_of_the_first(tmp_path):
    job = 'echo "$HOST works"; [[ $HOST == host-0 ]] && exit 3; echo "out of memory"; exit 1'
    with cloud_in(tmp_path / "cloud", job) as cloud:
        result = cloud.run(*EVERYTHING)
    assert (result.code, result.output) == (3, "host-0 works\n"), result
    assert "[host-1] ended with exit code 1\nhost-1 works\nout of memory\n" in result.errors


def test_following_shows_the_last_hundred_lines(tmp_path):
    with cloud_in(tmp_path / "cloud", "seq 1 250") as cloud:
        assert installed(cloud).run("run", *TPU, "--", "convert").code == 0
        while not cloud.on_host(0, "job", "exit_code").exists():
            time.sleep(0.01)
        result = cloud.run("follow", *TPU)
    assert (result.code, result.output.split()) == (0, [str(number) for number in range(151, 251)])


@pytest.mark.slow
def test_a_job_whose_host_went_down_has_failed(tmp_path):
    second_job_stays = "[[ -e ran ]] || { touch ran; exit 3; }; echo ready; exec tail -f /dev/null"
    with cloud_in(tmp_path / "cloud", second_job_stays) as cloud:
        assert installed(cloud).run("run", *TPU, "--", "convert").code == 0
        assert cloud.run("follow", *TPU).code == 3
        assert cloud.run("run", *TPU, "--", "convert").code == 0
        follower = following(cloud, "follow", *TPU)
        os.killpg(int(cloud.on_host(0, "job", "pid").read_text()), signal.SIGKILL)
        result = cloud.ended(follower)
    assert result.code == 1, result
    assert "the job on llama failed on host 0 (lost); all hosts say:\n" in result.errors
    assert "[host-1] still runs\n" in result.errors


def test_following_without_a_job_says_so(cloud):
    result = installed(cloud).run("follow", *TPU)
    assert result.code == 1 and "error: follow: no job was started on llama\n" in result.errors


def test_a_job_goes_on_without_its_connection_and_is_started_once(tmp_path):
    with cloud_in(tmp_path / "cloud", "echo here; exec tail -f /dev/null") as cloud:
        installed(cloud).plan("ACTIVE", host_start=["repeat"])
        result = cloud.run("run", *TPU, "--", "convert", "--x", "1")
        assert result.code == 0 and "[host-1] runs already" in result.errors, result
        while not all(cloud.jobs(host) for host in range(HOSTS)):
            time.sleep(0.01)
        assert len(cloud.jobs(0)) == len(cloud.jobs(1)) == 1
        other = cloud.run("run", *TPU, "--", "convert", "--x", "2")
        assert other.code == 1 and "another job runs here: convert --x 1; stop it first" in other.errors
        again = cloud.run("install", *TPU)
        assert again.code == 1 and "a job runs here: convert --x 1; follow it, or stop it first" in again.errors
        assert len(cloud.jobs(0)) == 1


SAVES = """
trap 'echo saved; exit 75' TERM
echo ready
while :; do read -t 0.05 < <(tail -f /dev/null) || true; done
"""


@pytest.mark.slow
def test_stop_lets_the_job_save_and_whoever_follows_hears_of_it(tmp_path):
    with cloud_in(tmp_path / "cloud", SAVES) as cloud:
        assert installed(cloud).run("run", *TPU, "--", "convert").code == 0
        follower = following(cloud, "follow", *TPU)
        stopped = cloud.run("stop", *TPU)
        result = cloud.ended(follower)
    assert stopped.code == 0 and "[host-1] ended with exit code 75\n" in stopped.errors, stopped
    assert (result.code, result.output) == (75, "saved\n"), result
    assert "the job on llama saved and ended after a signal; run the same command to resume\n" in result.errors


@pytest.mark.slow
def test_a_job_that_does_not_end_is_told_once_and_killed_at_last(tmp_path):
    job = "trap 'echo told' TERM; echo ready; while :; do read -t 0.05 < <(tail -f /dev/null) || true; done"
    with cloud_in(tmp_path / "cloud", job) as cloud:
        assert installed(cloud).run("run", *TPU, "--", "convert").code == 0
        follower = following(cloud, "follow", *TPU)
        command = [cloud.script, "stop", *TPU]
        first = subprocess.Popen(command, env=cloud.environment, stdout=-1, stderr=-1, text=True)
        while not cloud.on_host(0, "job", "stopping").exists():
            time.sleep(0.01)
        both = [cloud.run("stop", *TPU), cloud.ended(first)]
        result = cloud.ended(follower)
    assert [stopped.code for stopped in both] == [0, 0], both
    assert any("[host-0] did not end within 600 s and was killed" in stopped.errors for stopped in both)
    assert result.code == 137 and result.output == "told\n", result


def test_whoever_stops_following_is_told_that_the_job_goes_on(tmp_path):
    with cloud_in(tmp_path / "cloud", SAVES) as cloud:
        assert installed(cloud).run("run", *TPU, "--", "convert").code == 0
        follower = following(cloud, "follow", *TPU)
        os.killpg(follower.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
        result = cloud.ended(follower)
        assert result.code == 130
        assert "the job on llama keeps running; the steps follow and stop find it again" in result.errors
        assert result.errors.endswith(LEFT)
        assert cloud.run("stop", *TPU).code == 0


MISTAKES = {
    "no name": (NEW_TPU[2:], "--name: needed"),
    "a bad name": (("--name", "Llama_7", *NEW_TPU[2:]), "--name: 'Llama_7'"),
    "no zone": (("--name", "llama", "--project", "mine"), "--zone: needed"),
    "a region for a zone": ((*NEW_TPU, "--zone", "us-central1"), "--zone: 'us-central1'"),
    "no project": (("--name", "llama", "--zone", "us-central1-a"), "--project: needed"),
    "no type": (TPU, "--type: needed"),
    "an unknown type": ((*TPU, "--type", "v5e-256"), "--type: 'v5e-256'"),
    "slices that are no number": ((*NEW_TPU, "--slices", "0"), "--slices: '0'"),
    "restarts without keeping going": ((*NEW_TPU, "--restarts", "2"), "--restarts: does something only with"),
    "keeping a step going": (("follow", *TPU, "--keep_going"), "--keep_going: belongs to no step"),
    "going back at every restart": (
        (*NEW_TPU, "--keep_going", "--", "pretrain", "--resume", "100"),
        "--resume: with --keep_going '100' would hold for every restart",
    ),
    "no bucket": ((*NEW_TPU, "--", "pretrain"), "--bucket: needed"),
    "a bucket without its scheme": ((*NEW_TPU, "--bucket", "bucket", "--", "pretrain"), "--bucket: 'bucket'"),
    "a run directory on one host": ((*NEW_TPU, "--", "lora", "--run_dir", "runs/x"), "--run_dir: 'runs/x'"),
    "no command": (NEW_TPU, "no command; say it after --"),
    "an unknown command": ((*NEW_TPU, "--", "pretrian"), "pretrian: not a command of llama_jax"),
    "an unknown option": (("--typ", "v4-8"), "--typ: unknown option"),
    "an unknown step": (("start", *NEW_TPU), "start: unknown step"),
    "an option without its value": (("--name", "--zone", "us-central1-a"), "--name: needs a value"),
    "a wait that is no number": ((*NEW_TPU, "--wait_minutes", "6h"), "--wait_minutes: '6h'"),
    "a source that is no URL": ((*NEW_TPU, "--source", "main"), "--source: 'main'"),
    "a command for a step without": (("create", *NEW_TPU, "--", "pretrain"), "-- pretrain: create takes no command"),
    "deleting what was just started": (("run", *TPU, "--delete", "--", "convert"), "--delete: belongs to follow"),
    "processes that are no number": (("--local", "two", "--", "pretrain"), "--local: 'two'"),
    "several slices for local processes": (("--slices=2", "--local=2", "--", "pretrain"), "--local: takes no step and"),
    "a TPU for local processes": (("--local", "2", *TPU, "--", "pretrain"), "--local: takes no step and no option"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_in_one_line_and_calls_nothing(mistake, cloud):
    arguments, message = MISTAKES[mistake]
    result = cloud.run(*arguments)
    assert (result.code, result.output, cloud.calls()) == (2, "", []), result
    assert result.errors.startswith(f"error: {message}") and result.errors.count("\n") == 1, result.errors


def test_without_gcloud_one_line_says_where_to_find_it(tmp_path):
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    result = subprocess.run([SCRIPT, *EVERYTHING], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: gcloud: not installed here; see https://cloud.google.com/sdk/docs/install\n"


def test_every_command_that_trains_gets_a_run_directory_in_the_bucket():
    # `benchmark` builds a step too, but not for devices of the caller's choice: it makes no run.
    builds = re.compile(r"^def build\(.*\bdevices\b", re.MULTILINE)
    commands = {path.stem for path in (ROOT / "llama_jax").glob("*.py") if builds.search(path.read_text())}
    listed = re.search(r"case \$\{COMMAND\[0\]\} in\n +([a-z |]+)\)", SCRIPT.read_text())
    assert listed and set(listed[1].split(" | ")) == commands
