"""`doctor` through its real command: on one device, on eight, as two processes, and where JAX is broken."""

import json
import re
from pathlib import Path

import command_runs
import jax
import pytest

from llama_jax.core.config import DistributedConfig
from llama_jax.diagnosis.config import DoctorConfig
from llama_jax.diagnosis.environment import Host
from llama_jax.diagnosis.probe import Request
from llama_jax.diagnosis.watching import watched

QUICK = ("--seconds", 0.3, "--json")
NAMES = ["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute"]


def reported(capfd, *arguments: object) -> tuple[int, list[str], dict]:
    """Exit code, lines for people, JSON."""
    code = command_runs.call("doctor", *QUICK, *arguments)
    printed = capfd.readouterr()
    assert printed.out, printed.err
    return code, printed.err.splitlines(), json.loads(printed.out.splitlines()[-1])


def breaking(folder: Path, program: str) -> Path:
    """A folder with a package `jax` that does what the program says instead."""
    (folder / "jax").mkdir()
    (folder / "jax" / "__init__.py").write_text(program)
    return folder


@pytest.mark.slow
def test_eight_devices_are_measured_and_exchange_rightly(capfd, tmp_path) -> None:
    code, lines, result = reported(capfd, "--mesh.data", 2, "--mesh.tensor", 2, "--run_dir", tmp_path / "runs")
    assert code == 0
    assert (result["devices"]["platform"], result["devices"]["count"], result["devices"]["processes"]) == ("cpu", 8, 1)
    outcomes = [(each["axes"], each["name"], each["problem"]) for each in result["collectives"]]
    axes = ("data 2", "fsdp 2", "tensor 2", "data x fsdp x tensor 8")
    assert outcomes == [(axis, name, "") for axis in axes for name in NAMES]
    for name, said in (("matmul_bfloat16", "bfloat16 matmul"), ("matmul_float32", "float32 matmul")):
        rate = result[name]
        assert 1e8 < rate["least"] <= rate["median"] <= rate["most"] < 1e15
        (line,) = [line for line in lines if said in line]
        figure = float(line.split("GFLOP/s")[0].split()[-1].replace(",", ""))
        assert figure == pytest.approx(rate["median"] / 1e9, rel=0.01), "people and programs read the same"
    assert result["memory_bandwidth"]["median"] > 1e8
    assert result["choices"]["attention"] == "blocked"
    assert result["choices"]["rows"] == 4
    # One row of 32,000 logits in float32 is 262 MB for 2,048 tokens.
    assert result["choices"]["loss_chunks"] == 2
    assert result["hosts"][0]["packages"]["jax"] == jax.__version__
    assert len(result["numbers"]) == 16 and all(each["error"] < each["tolerance"] for each in result["numbers"])
    assert result["ready"] and result["verdict"].startswith(
        "ready: 8 cpu devices, every number right, every collective correct"
    )
    assert lines[-1] == result["verdict"]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_one_device_is_ready_too(tmp_path) -> None:
    ended = command_runs.run("doctor", *QUICK, folder=tmp_path)
    result = json.loads(ended.output.splitlines()[-1])
    assert ended.code == 0, ended
    assert result["devices"]["count"] == 1
    assert result["collectives"] == []
    assert result["verdict"].startswith("ready: 1 cpu device")
    assert ended.errors.splitlines()[-1] == result["verdict"]


@pytest.mark.slow
def test_two_processes_give_one_report(tmp_path) -> None:
    first, second = command_runs.run_two("doctor", *QUICK, folder=tmp_path)
    assert (first.code, second.code) == (0, 0), (first, second)
    result = json.loads(first.output.splitlines()[-1])
    assert (result["devices"]["count"], result["devices"]["processes"], len(result["hosts"])) == (8, 2, 2)
    assert [(each["name"], each["problem"]) for each in result["collectives"]] == [(name, "") for name in NAMES]
    assert (second.output, second.errors) == ("", "process 1 of 2: process 0 reports for all\n")


@pytest.mark.slow
def test_a_process_whose_fellows_do_not_come_says_so(capfd) -> None:
    job = ("--distributed.num_processes", 2, "--distributed.process_id", 1, "--distributed.timeout_seconds", 1)
    code, lines, result = reported(capfd, "--distributed.coordinator", "127.0.0.1:9", *job)
    assert code == 1
    assert re.match(
        r"^1 problem: not all processes of this job have joined: .*process 0 did not come to 127.0.0.1:9 within 1 s",
        lines[-1],
    )
    assert "start the same command on every host" in result["findings"][0]["remedy"]
    assert result["devices"] is None


BROKEN = {
    "no jax": ("raise ModuleNotFoundError(\"No module named 'jax'\")", "ModuleNotFoundError: No module named 'jax'"),
    "an error": ("raise RuntimeError('jaxlib is version 0.1,\\nbut')", "RuntimeError: jaxlib is version 0.1, but"),
    "a crash": ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
    "a silent end": ("import os; print('bye'); os._exit(3)", "the process ended with code 3: bye"),
}


@pytest.mark.parametrize("breakage", BROKEN)
def test_a_broken_jax_is_named_in_one_line(breakage, tmp_path, capfd, monkeypatch) -> None:
    program, said = BROKEN[breakage]
    monkeypatch.syspath_prepend(breaking(tmp_path, program))
    code, lines, result = reported(capfd)
    assert code == 1
    assert lines[-1] == f"1 problem: JAX does not start: {said}" == result["verdict"]
    assert not result["ready"]
    assert result["findings"][0]["what"] == f"JAX does not start: {said}"
    assert any(line.startswith("  jaxlib ") for line in lines), "what is known without JAX is told"


def test_a_start_that_does_not_end_is_given_up(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(breaking(tmp_path, "import time; time.sleep(600)"))
    request = Request(Host(), DoctorConfig(seconds=1.0, distributed=DistributedConfig(timeout_seconds=1)))
    messages = list(watched(request, start_seconds=1.0))
    # On a busy machine not even the first message comes in time.
    assert [each.what for each in messages] in (["stage", "stopped"], ["stopped"])
    assert messages[-1].value["why"] == "no answer for 2 s while starting JAX"


def test_hosts_that_the_environment_names_are_waited_for(monkeypatch) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    messages = list(watched(Request(Host(), DoctorConfig(distributed=DistributedConfig()))))
    assert [each.what for each in messages] == ["stage", "pod", "failed", "end"]
    # Their names mean nothing to JAX where there is no TPU.
    assert messages[2].value["why"] == "ValueError: coordinator_address should be defined."


def test_a_mesh_that_does_not_fit_is_a_mistake_of_the_users(capfd) -> None:
    assert command_runs.call("doctor", "--mesh.tensor", 3) == 2
    assert capfd.readouterr().err.startswith("error: mesh: data 1 x fsdp -1 x sequence 1 x tensor 3 does not make 8")


@pytest.mark.slow
def test_a_collective_that_is_wrong_ends_with_code_one(tmp_path, capfd, monkeypatch) -> None:
    # Python imports it at the start of the process that JAX is tried in.
    (tmp_path / "sitecustomize.py").write_text(
        "import jax\nright = jax.lax.psum\njax.lax.psum = lambda x, axes: right(x, axes) + 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, lines, result = reported(capfd)
    assert code == 1
    wrong = {each["name"]: each["problem"] for each in result["collectives"] if each["problem"]}
    assert list(wrong) == ["all-reduce"]
    assert wrong["all-reduce"].startswith("cpu:0 has 32 of 32 numbers wrong, the first ")
    assert lines[-1] == f"1 problem: all-reduce along fsdp 8: {wrong['all-reduce']}"
    assert any(line.split()[:2] == ["all-reduce", "WRONG"] for line in lines)


def test_settings_that_make_no_sense_are_refused(capfd) -> None:
    for arguments, said in (
        (("--seconds", 0), "--seconds 0.0: must be greater than 0"),
        (("--size", "llama_7"), "--size llama_7: unknown; did you mean 'llama_7b'?"),
        (("--sequence_length", 0), "--sequence_length 0: must be at least 1"),
    ):
        assert command_runs.call("doctor", *arguments) == 2
        assert said in capfd.readouterr().err
