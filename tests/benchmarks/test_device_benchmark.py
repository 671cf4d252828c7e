"""`benchmark all`: which parts run, what is kept of them, and the table."""

import json
import time
from pathlib import Path

import command_runs
import pytest
from sweeps import some

from llama_jax.benchmarks.device import running
from llama_jax.benchmarks.device.machine import check_same
from llama_jax.benchmarks.device.parts import Part, parts_for
from llama_jax.benchmarks.device.running import measured, run_parts
from llama_jax.benchmarks.device.table import table
from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse

MACHINE = {
    "device": {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "count": 1},
    "nvidia_smi": {"driver_version": "570.1", "power.limit": "700.00 W"},
    "processor": "a processor",
    "processors": 16,
    "python": "3.12.1",
    "packages": {"jax": "0.11.2", "torch": "2.13.0"},
    "code": "abc",
}


def part(name: str, seconds: int = 10, needs: tuple[str, ...] = ()) -> Part:
    return Part(name, name, "training", seconds, (name,), needs)


def outcome(speed: float) -> dict:
    return {"status": "measured", "seconds": 1.0, "result": {"tokens_per_second": speed}}


@pytest.mark.parametrize("platform", some(("cpu", "gpu"), default=("gpu",)))
def test_every_part_is_a_command_that_is_read_without_an_error(platform) -> None:
    parts = parts_for(platform)
    assert len({each.name for each in parts}) == len(parts)
    compared = {each.beside for each in parts}
    for each in parts:
        if each.name in compared:
            continue  # the other side's command says the same, and more
        command, *arguments = each.command
        config = parse(COMMANDS[command], arguments, command=command, commands=COMMANDS, presets=PRESETS)
        assert getattr(config, "program", "llama_jax") == ("pytorch" if each.beside else "llama_jax")
    own = {each.name for each in parts if not each.beside}
    assert {each.beside for each in parts if each.beside} <= own


def test_what_is_missing_is_measured_and_what_failed_comes_last(monkeypatch) -> None:
    called = []

    def took(each: Part, limit: float) -> dict:
        called.append(each.name)
        assert limit <= 4 * each.seconds
        return outcome(1.0) if each.name != "crashes" else {"status": "failed", "seconds": 2.0, "reason": "SIGSEGV"}

    monkeypatch.setattr(running, "measured", took)
    parts = [part("there"), part("crashes"), part("later"), part("long", 5000), part("other", needs=("no_such_one",))]
    result: dict = {"parts": {"there": outcome(5.0)}}
    kept, said = [], []
    arguments = (lambda: kept.append(json.dumps(result)), said.append)
    run_parts(parts, result, time.monotonic() + 1000, *arguments)
    assert called == ["crashes", "later"]
    assert len(kept) == 4, "each as soon as it is there"
    reasons = {name: each.get("reason", "") for name, each in result["parts"].items()}
    assert reasons["crashes"] == "SIGSEGV" and reasons["other"] == "no_such_one is not installed"
    assert reasons["long"].startswith("takes about 5000 s, and ")
    assert result["parts"]["there"] == outcome(5.0)
    run_parts([*parts, part("new")], result, time.monotonic() + 1000, *arguments)
    assert called[2:] == ["new", "crashes"]


def test_a_part_that_takes_too_long_is_a_line_in_the_report() -> None:
    stopped = measured(Part("x", "x", "training", 1, ("benchmark", "train")), 0.05)
    assert stopped["status"] == "failed" and stopped["reason"].startswith("stopped after")


@pytest.mark.slow
def test_a_part_that_fails_is_a_line_in_the_report() -> None:
    refused = measured(Part("x", "x", "training", 1, ("benchmark", "train", "--turns", "0")), 60.0)
    assert refused["status"] == "failed" and "--turns 0: must be at least 1" in refused["reason"]


def test_results_of_another_card_or_of_other_code_are_not_mixed() -> None:
    check_same(MACHINE, MACHINE, "all.json")
    with pytest.raises(UserError, match=r"--output all.json: holds results of another code, abc, and this is abd"):
        check_same(MACHINE, MACHINE | {"code": "abd"}, "all.json")


def test_the_table_has_the_other_side_the_ratio_and_what_is_missing() -> None:
    parts = (part("train"), Part("torch", "torch", "training", 1, (), beside="train"), part("lora"))
    operation = {"name": "fusion.1", "source": "mlp/mul", "seconds": 0.02, "share": 0.5, "calls": 3}
    own = outcome(3000.0)
    own["result"] |= {"model_flops_per_second": 5e14, "model_flops_utilization": 0.5056}
    own["result"] |= {"profile": {"busy_seconds": 0.04, "operations": [operation]}}
    found = {"train": own, "torch": outcome(2000.0), "lora": {"status": "failed", "reason": "out of memory"}}
    text = table({"machine": MACHINE, "date": "2026-11-28T18:00:00+00:00", "parts": found}, parts)
    lines = text.splitlines()
    assert lines[0].startswith("1 x NVIDIA H100 80GB HBM3, driver 570.1, ") and lines[0].endswith("2026-11-28:")
    assert "jax 0.11.2, torch 2.13.0" in lines[0]
    row = "| train (`train`) | 3,000 tokens/s, 500 TFLOP/s, 50.6% of the peak | 2,000 tokens/s | **1.50** |  |"
    assert row in lines
    assert "| 50.0% | 0.0200 | 3 | `fusion.1` | `mlp/mul` |" in lines
    assert lines[-1] == "* `lora`: failed: out of memory"


@pytest.mark.slow
def test_all_of_a_cpu_is_measured_and_resumed(tmp_path: Path, capfd) -> None:
    file = tmp_path / "all.json"
    arguments = ("benchmark all", "--output", file, "--parts", "[attention_58m]", "--minutes", "5")
    assert command_runs.call(*arguments) == 0
    first = json.loads(file.read_text())
    assert first["parts"]["attention_58m"]["status"] == "measured"
    implementations = first["parts"]["attention_58m"]["result"]["implementations"]
    assert implementations["blocked"]["seconds"] > 0 and "interpreted" in implementations["splash"]["reason"]
    assert command_runs.call(*arguments, "--json") == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == first, "nothing is measured twice"
