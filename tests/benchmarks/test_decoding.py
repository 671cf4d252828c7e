"""What is made of the times of decoding: rates, ratios, and what memory and arithmetic allow."""

import dataclasses

import pytest

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.decoding.comparison import _check_agreement
from llama_jax.benchmarks.decoding.engine_side import decoding_sizes
from llama_jax.benchmarks.decoding.report import report
from llama_jax.benchmarks.decoding.roofline import least_seconds
from llama_jax.benchmarks.decoding.task import Task, rates
from llama_jax.benchmarks.turns import Side
from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.settings.command_line import parse
from llama_jax.model.llama import language_model

H100 = {"device_kind": "NVIDIA H100 80GB HBM3", "devices": 1}


def parsed(*arguments: str) -> BenchmarkConfig:
    return parse(COMMANDS["benchmark"], arguments, command="benchmark", commands=COMMANDS, presets=PRESETS)


def test_rates_count_what_came_since_all_streams_had_begun() -> None:
    alone = rates([[0.5, 1.0, 1.5]], 128)
    assert alone == {"prefill": 256, "decode": 2, "all": 2}
    # The second stream's prompt is read while the first one already writes.
    both = rates([[0.5, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]], 128)
    assert both == {"prefill": 256, "decode": 5 / 3, "all": 2}


def test_prompts_are_as_long_as_asked_for_and_never_the_same() -> None:
    task = Task("", (), 12, 4, 3)
    first, second = task.prompts(1, 3), task.prompts(2, 3)
    assert {len(prompt) for prompt in first + second} == {12}
    assert len({tuple(prompt) for prompt in first + second}) == 6
    assert first == task.prompts(1, 3), "all sides are given the same"


def test_an_h100_cannot_decode_llama_3_8b_faster_than_its_memory_is_read() -> None:
    config = parsed("--config", "benchmark_decode_8b")
    assert config.what == "decode" and config.streams == (1, 64)
    run = config.run
    own = decoding_sizes(config, language_model(run.model.architecture, run.compute)) | H100
    # arXiv:2407.21783, table 3: 32 layers, 8 key/value heads of 128; the table of 128,256 x 4,096 is not the head.
    assert own["parameters"] == 8_030_261_248 and own["weights_bytes"] == 2 * 8_030_261_248
    assert own["weights_bytes"] - own["weights_bytes_read"] == 2 * 128_256 * 4096
    assert own["cache_bytes_a_token"] == 32 * 2 * 8 * 128 * 2
    step, least = least_seconds(config, own, 1)
    assert step == own["weights_bytes_read"] + (128 + 64) * own["cache_bytes_a_token"]
    assert least == step / 3350e9
    # With 64 streams arithmetic still takes less than memory; with 1,000 it takes more.
    assert least_seconds(config, own, 64)[1] == least_seconds(config, own, 64)[0] / 3350e9
    step, least = least_seconds(config, own, 1000)
    assert least is not None and least > step / 3350e9
    assert least_seconds(config, own | {"device_kind": "cpu"}, 1)[1] is None


def reported(capsys, config, platform: str, kind: str) -> tuple[dict, str]:
    own = {"platform": platform, "device_kind": kind, "devices": 1, "weights_bytes": 1000, "weights_bytes_read": 800}
    own |= {"cache_bytes": 200, "cache_bytes_a_token": 1, "flops_a_token": 2, "flops_a_cached_token": 0}
    names = ["llama_jax", "transformers"] if config.against else ["llama_jax"]
    measured = {
        name: {count: [{"decode": 30.0 / place * count, "prefill": 90.0, "all": 20.0}] for count in config.streams}
        for place, name in enumerate(names, 1)
    }
    sides = []
    for name in names:
        side = Side.__new__(Side)  # without a process
        side.name, side.peak_host_bytes = name, 1800
        sides.append(side)
    seconds = [0.02] if platform == "cpu" else []
    found = report(config, dict.fromkeys(names, own), measured, sides, seconds)
    return found, capsys.readouterr().out


def test_a_report_has_a_ratio_in_each_line(capsys) -> None:
    config = parsed("decode", "--against", "transformers", "--weights", "somewhere", "--decode_rows", "4")
    found, said = reported(capsys, config, "cpu", "cpu")
    assert found["ratio"] == {str(count): {"decode": 2, "prefill": 1, "all": 1} for count in (1, 4)}
    # One stream reads 800 bytes of weights and 192 tokens of caches in each of 30 steps a second.
    reading = found["llama_jax"]["reading"]["1"]
    assert reading == pytest.approx({"bytes_per_second": 992 * 30, "of_plain_read": 992 * 30 * 0.02 / 800})
    assert found["llama_jax"]["memory_ratio"] == 1800 / 1200
    heading, *lines = said.splitlines()
    assert "llama_jax" in heading and "transformers" in heading
    assert len(lines) == 2 * 3 + 2 + 2 and all("ratio" in line for line in lines)


def test_on_an_accelerator_decoding_is_compared_with_its_roofline(capsys) -> None:
    found, said = reported(capsys, parsed("decode", "--decode_rows", "4"), "gpu", H100["device_kind"])
    assert found["llama_jax"]["reading"]["1"]["of_roofline"] == pytest.approx(992 / 3350e9 * 30)
    assert "ratio 0.00 to the roofline of 1 x NVIDIA H100 80GB HBM3" in said and "memory" not in said


def test_sides_that_write_something_else_are_not_compared() -> None:
    config = dataclasses.replace(parsed("decode"), against="transformers", weights="somewhere")
    own = {"sample_answer": [5, 6, 7, 8, 9, 10]}
    _check_agreement(config, {"llama_jax": own, "transformers": {"sample_answer": [5, 6, 7, 8, 1, 2]}})
    with pytest.raises(RuntimeError, match="do not hold the same model"):
        _check_agreement(config, {"llama_jax": own, "transformers": {"sample_answer": [5, 6, 7, 1, 9, 10]}})
