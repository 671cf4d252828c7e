"""What became of the probe, in one line, with what puts it right."""

import pytest

from llama_jax.diagnosis.examination import low_speeds, stage_failure, start_failure, verdict
from llama_jax.diagnosis.findings import Finding

START_FAILURES = {
    "no answer for 150 s while starting JAX": (True, "not all processes", "--worker=all"),
    "DEADLINE_EXCEEDED: Deadline Exceeded": (True, "not all processes", "start the same command on every host"),
    "no answer for 90 s while starting JAX": (False, "JAX does not start", "python -c 'import jax"),
    "RuntimeError: ABORTED: The TPU is already in use by process with pid 7": (False, "already in use", "sudo lsof"),
    "open(/dev/vfio/1): Device or resource busy": (True, "resource busy", "sudo rm /tmp/libtpu_lockfile"),
    "ValueError: coordinator_address should be defined.": (
        True,
        "JAX does not start",
        "give --distributed.coordinator",
    ),
    "killed by SIGSEGV": (False, "killed by SIGSEGV", "pip install -U"),
    "ModuleNotFoundError: No module named 'jax'": (False, "No module named 'jax'", "pip install"),
    "RuntimeError: Unable to initialize backend 'tpu': NOT_FOUND": (False, "backend 'tpu'", "unset JAX_PLATFORMS"),
}


@pytest.mark.parametrize("why", START_FAILURES)
def test_a_start_that_fails_is_explained(why) -> None:
    has_peers, what, remedy = START_FAILURES[why]
    finding = start_failure(why, has_peers)
    assert finding.level == "broken"
    assert what in finding.what and why in finding.what
    assert remedy in finding.remedy


def test_an_exchange_that_does_not_end_and_memory_that_is_taken_are_told_apart() -> None:
    assert "cannot reach each other" in stage_failure("all-reduce along fsdp", "no answer for 96 s").remedy
    assert "another process holds the memory" in stage_failure("x", "XlaRuntimeError: RESOURCE_EXHAUSTED: …").remedy


def test_a_speed_far_below_what_the_maker_says_is_a_warning() -> None:
    rate = {"median": 90e12, "peak": 197e12}
    (slow,) = low_speeds({"matmul_bfloat16": rate, "memory_bandwidth": {"median": 8e9, "peak": None}})
    assert (slow.level, slow.what) == ("warning", "bfloat16 matrix products reach 46% of the published peak")
    assert low_speeds({"matmul_bfloat16": rate | {"median": 150e12}}) == []


def test_the_verdict_is_one_line_that_counts() -> None:
    report = {"devices": {"count": 8, "kind": "TPU v4", "processes": 2}, "collectives": [{}]}
    warning, broken = Finding("warning", "few files", "more"), Finding("broken", "no plugin", "install it")
    assert verdict([], report) == "ready: 8 TPU v4 devices, 2 processes, every collective correct"
    assert verdict([warning], report).endswith("every collective correct, 1 warning")
    assert verdict([broken, warning], report) == "1 problem: no plugin"
    assert verdict([broken, broken._replace(what="no disk")], {"devices": None}) == "2 problems: no plugin; no disk"
