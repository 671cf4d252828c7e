"""Measurements of one device, and the facts of the machine that this runs on."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from importlib import metadata

import jax
import numpy as np
import pytest

from llama_jax.diagnosis.environment import Host
from llama_jax.diagnosis.gathering import holders, place, this_host
from llama_jax.diagnosis.measuring import matmul_rate, measured, memory_rate, wrong_products


def test_a_rate_is_work_over_time(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def run(count: int) -> jax.Array:
        nonlocal now
        now += 0.002 * count
        return jax.numpy.zeros(())

    rate = measured(run, work=10.0, seconds=0.3)
    assert [rate.least, rate.median, rate.most] == pytest.approx([5000] * 3)
    assert rate.repetitions >= 3


def test_one_device_multiplies_and_reads() -> None:
    for rate in (matmul_rate("float32", 256, 0.1), matmul_rate("bfloat16", 256, 0.1), memory_rate(2**22, 0.1)):
        assert 1e8 < rate.least <= rate.median <= rate.most
        assert rate.peak is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_wrong_product_is_found(dtype, monkeypatch) -> None:
    assert wrong_products(dtype, size=64) == ""
    right = jax.numpy.matmul
    monkeypatch.setattr(jax.numpy, "matmul", lambda *arguments, **options: right(*arguments, **options).at[3, 4].add(1))
    assert wrong_products(dtype, size=64) == f"1 of 4096 products of {dtype} numbers are wrong"


def test_the_facts_of_this_machine_are_true(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
    monkeypatch.setenv("MY_TOKEN", "secret")
    host = this_host(str(tmp_path / "runs"))
    assert host.name == socket.gethostname()
    assert host.packages["jax"] == jax.__version__
    assert host.packages["numpy"] == np.__version__
    assert host.packages["llama_jax"] == metadata.version("llama_jax")
    assert host.variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".5"
    assert "MY_TOKEN" not in host.variables, "of others' variables nothing is read"
    assert host.memory_bytes is not None and host.available_bytes is not None
    assert 0 < host.available_bytes <= host.memory_bytes
    assert host.runs.path == str(tmp_path / "runs") and host.runs.writable
    assert {asked.package for asked in host.requirements if asked.owner == "llama_jax"} >= {"python", "jax", "flax"}
    assert [asked.specifier for asked in host.requirements if (asked.owner, asked.package) == ("jax", "jaxlib")]
    assert Host.from_json(dataclasses.asdict(host)) == host


def test_a_process_that_has_a_file_open_is_found_by_its_number(tmp_path) -> None:
    file = tmp_path / "accel0"
    file.touch()
    assert list(holders((str(tmp_path),))) == []
    program = f"import sys; held = open({str(file)!r}); print('open', flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", program]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        (holder,) = holders((str(tmp_path / "accel"),))
        assert holder.pid == process.pid
        assert holder.command.startswith(sys.executable[:20])
        process.communicate()


def test_a_place_is_judged_by_the_folder_that_is_there(tmp_path) -> None:
    (tmp_path / "file").touch()
    assert place(str(tmp_path / "a" / "b")).writable
    assert not place(str(tmp_path / "file" / "runs")).writable
    assert place("gs://bucket/runs").free_bytes is None
    if os.getuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert not place(str(tmp_path / "closed" / "runs")).writable
