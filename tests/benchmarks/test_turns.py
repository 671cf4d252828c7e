"""Turns of two processes, and what is made of their times."""

import json
import subprocess
import sys
import time

import pytest

from llama_jax.benchmarks.turns import Side, peak_host_bytes, sides, summary
from llama_jax.core.errors import UserError

SERVER = """
import sys, time
from llama_jax.benchmarks.turns import serve
from llama_jax.core.errors import UserError

def prepare(task):
    if task == "refuse":
        raise UserError("not this one")
    print("a stray line")
    return (lambda steps: time.sleep(task * steps) or [steps]), {"task": task}

serve(prepare)
"""


def side() -> Side:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return Side("test", process)


def test_summary_has_the_median_and_the_half_width_of_the_quartiles() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert summary(values) == {"median": 3, "least": 1, "most": 5, "noise": 1 / 3, "all": values}
    assert summary([2.0])["noise"] == 0


def test_a_side_reports_seconds_a_step_and_is_not_confused_by_stray_output() -> None:
    with_pause = side()
    assert with_pause.prepare(0.05) == {"task": 0.05}
    most = []
    for steps in (2, 1):
        started = time.monotonic()
        assert with_pause.take_turn(steps) == [steps], "what the turn returns"
        most.append((time.monotonic() - started) / steps)
    assert len(with_pause.seconds) == 2
    assert all(0.05 <= seconds < limit for seconds, limit in zip(with_pause.seconds, most, strict=True))


def test_what_a_side_refuses_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match=r"^not this one$"):
        side().prepare("refuse")


def test_a_side_that_dies_ends_the_measurement() -> None:
    with (
        sides({"broken": "llama_jax.benchmarks.turns:no_such_function"}) as (broken,),
        pytest.raises(RuntimeError, match="broken: the process ended with code 1"),
    ):
        broken.prepare(None)


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    ballast = bytearray(300 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from llama_jax.benchmarks.turns import peak_host_bytes; print(peak_host_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert peak_host_bytes() > len(ballast)
    assert child < 150 * 2**20


def test_both_processes_import_neither_side() -> None:
    """The memory of a side is its own: what both import must be small."""
    code = "import sys, json, llama_jax.benchmarks.turns; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    )
    assert not {"jax", "torch", "numpy"} & set(modules)
