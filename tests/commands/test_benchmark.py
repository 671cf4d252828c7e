"""Benchmarks through the real command."""

import importlib.util
import json
import sys
from pathlib import Path

import command_runs
import pytest

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.config import COMMANDS, PRESETS, check_paths
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse
from llama_jax.core.settings.parser import command_for

QUICK = ("--turns", 2, "--steps_per_turn", 1, "--warmup_steps", 1, "--json")


def parsed(*arguments: str) -> BenchmarkConfig:
    return parse(COMMANDS["benchmark"], arguments, command="benchmark", commands=COMMANDS, presets=PRESETS)


def result(capfd, folder: Path, *arguments: object) -> dict:
    assert command_runs.call("benchmark", *arguments, "--output", folder) == 0
    return json.loads(capfd.readouterr().out.strip().splitlines()[-1])


def test_the_first_word_says_what_to_measure() -> None:
    assert parsed("data", "--seed", "3") == parsed("--seed", "3", "--what", "data")
    with pytest.raises(
        UserError, match=r'^what: got "trian", expected one of train, lora, decode, attention, data, scaling$'
    ):
        parsed("trian")
    with pytest.raises(UserError, match=r"^data: unexpected"):
        parsed("--seed", "3", "data")


@pytest.mark.slow
def test_train_reports_numbers_that_agree(tmp_path, capfd) -> None:
    measured = result(capfd, tmp_path, "train", "--config", "tiny/pretrain", *QUICK)
    assert measured["tokens_per_step"] == 16 * 64
    assert measured["devices"] == 8
    seconds = measured["step_seconds"]
    assert len(seconds["all"]) == 2 and seconds["least"] <= seconds["median"] <= seconds["most"]
    assert measured["tokens_per_second"] * seconds["median"] == pytest.approx(1024)
    assert measured["model_flops_per_second"] == pytest.approx(
        measured["tokens_per_second"] * measured["flops_per_token"]
    )
    assert measured["model_flops_utilization"] is None, "the peak of a CPU is not in the table"
    assert 0 < measured["compile_seconds"]["warm"] < measured["compile_seconds"]["cold"]
    memory = measured["memory"]
    assert memory["peak_host_bytes"] > memory["temporary"] > 0
    assert memory["results_not_in_place"] < 10_000 < memory["arguments"], "the state is updated in place"
    assert json.loads((tmp_path / "train.json").read_text()) == measured


def test_data_measures_the_loader_with_each_number_of_workers(tmp_path, capfd) -> None:
    (tmp_path / "text.txt").write_text("The function returns a list of the values in the dictionary.\n\n" * 4000)
    arguments = ("--data.source", tmp_path / "text.txt", "--model.vocab_size", 300, "--data.sequence_length", 64)
    measured = result(capfd, tmp_path, "data", *arguments, *QUICK, "--seconds", 0.05, "--workers", "[0, 1]")
    assert set(measured["workers"]) == {"0", "1"}
    assert all(speeds["median"] > 0 and len(speeds["all"]) == 2 for speeds in measured["workers"].values())


@pytest.mark.slow
def test_scaling_compares_with_the_formula_and_draws(tmp_path, capfd) -> None:
    sizes = ("--contexts", "[32, 64]", "--widths", "[64, 128]", "--batch_sizes", "[16, 8]")
    measured = result(capfd, tmp_path, "scaling", "--config", "tiny/pretrain", *sizes, *QUICK)
    along = {axis: [point[axis] for point in points] for axis, points in measured["sweeps"].items()}
    assert along == {"context": [32, 64], "width": [64, 128], "batch": [8, 16]}
    assert [point["batch"] for point in measured["sweeps"]["context"]] == [16, 8], "as many tokens a step"
    assert measured["base"] == measured["sweeps"]["width"][0] == measured["sweeps"]["context"][0]
    narrow, wide = (point["flops_per_token"] for point in measured["sweeps"]["width"])
    assert 2 < wide / narrow < 4
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_without_its_packages_names_the_extra(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command_runs.call("benchmark", "train", "--against", "transformers", "--output", tmp_path) == 2
    assert capfd.readouterr().err == ("error: --against transformers: needs torch; pip install 'llama_jax[oracle]'\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("data", "--against", "transformers"), "--against transformers: is for 'benchmark train'"),
        (("--against", "transformers", "--compute.dtype", "bfloat16"), "compute.dtype: bfloat16, but --against"),
        (
            ("train", "--against", "llama.cpp"),
            "--against llama.cpp: is for 'benchmark decode', not for 'benchmark train'",
        ),
        (("--weights", "model.gguf"), "--weights model.gguf: is for 'benchmark decode', not for 'benchmark train'"),
        (("--dry_run", "true"), "--dry_run: is for 'benchmark decode', not for 'benchmark train'"),
        (("decode", "--compiled", "true"), "--compiled true: is of the other side of 'benchmark train'"),
        (
            ("data", "--program", "pytorch"),
            "--program pytorch: is for train, lora, decode with random weights, and not",
        ),
        (("decode", "--profile_steps", "1"), "--profile_steps 1: is for 'benchmark train' and 'lora' by themselves"),
        (("decode", "--new_tokens", "1"), "--new_tokens 1: must be at least 2"),
        (("--turns", "0"), "--turns 0: must be at least 1"),
        (("--widths", "[]"), r"--widths \[\]: needs numbers of at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        parsed(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--against", "llama.cpp"), "--against llama.cpp: needs --weights, a model that both sides open"),
        (("--dry_run", "--against", "llama.cpp"), "--dry_run: is of random weights of the architecture model"),
        (("--dry_run", "--prompt_tokens", 2000), "--prompt_tokens 2000: with 128 new ones exceeds the model's context"),
    ],
)
def test_decoding_that_cannot_be_measured_is_refused(tmp_path, capfd, arguments, message: str) -> None:
    assert command_runs.call("benchmark", "decode", *arguments, "--output", tmp_path) == 2
    assert capfd.readouterr().err.startswith(f"error: {message}")


def test_weights_that_are_not_there_are_named_before_anything_is_imported() -> None:
    with pytest.raises(UserError, match=r"^--weights no/such/model.gguf: no such file or directory$"):
        check_paths(parsed("decode", "--weights", "no/such/model.gguf"))


def test_a_dry_run_of_decoding_lays_it_out_and_compiles_it(tmp_path, capfd) -> None:
    arguments = ("--model.size", "tiny", "--decode_rows", 8, "--prompt_tokens", 16, "--new_tokens", 16, "--dry_run")
    assert command_runs.call("benchmark", "decode", *arguments, "--output", tmp_path) == 0
    said = capfd.readouterr().out
    assert "166,208 parameters" in said and "a step:   8 x 1 token reads" in said
    assert "a device holds parameters" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_decoding_reports_rates_of_one_stream_and_of_many(tmp_path, capfd) -> None:
    sizes = ("--model.size", "tiny", "--decode_rows", 8, "--prompt_tokens", 16, "--new_tokens", 16)
    measured = result(capfd, tmp_path, "decode", *sizes, *QUICK)
    own = measured["llama_jax"]
    assert own["parameters"] == 166_208 and own["devices"] == 8 and set(own["tokens_per_second"]) == {"1", "8"}
    for rates in own["tokens_per_second"].values():
        assert all(rate["median"] > 0 and len(rate["all"]) == 2 for rate in rates.values())
    assert measured["plain_read_bytes_per_second"] > 0 and own["memory_ratio"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("other, package", [("transformers", "transformers"), ("llama.cpp", "xllamacpp")])
def test_decoding_is_compared_with_others_that_hold_the_same_weights(
    tiny_run, tmp_path, capfd, other: str, package: str
) -> None:
    pytest.importorskip(package)
    sizes = ("--decode_rows", 8, "--prompt_tokens", 16, "--new_tokens", 16)
    measured = result(capfd, tmp_path, "decode", "--against", other, "--weights", tiny_run, *sizes, *QUICK)
    rates = {name: measured[name]["tokens_per_second"]["8"]["decode"]["median"] for name in ("llama_jax", other)}
    assert measured["ratio"]["8"]["decode"] == pytest.approx(rates["llama_jax"] / rates[other])
    assert measured["llama_jax"]["sample_answer"][:4] == measured[other]["sample_answer"][:4]


def test_every_config_of_pretrain_can_be_measured() -> None:
    for file in (command_runs.ROOT / "configs").glob("pretrain_*.yaml"):
        assert parsed("train", "--config", str(file)).what == "train"


@pytest.mark.parametrize("name, what", [("1b", "train"), ("lora_8b", "lora")])
def test_what_is_measured_on_a_gpu_can_be_planned(name: str, what: str) -> None:
    arguments = ["--config", f"benchmark_{name}"]
    command = command_for("plan", arguments, COMMANDS)
    assert command == "plan benchmark"
    planned = parse(COMMANDS[command], arguments, command=command, commands=COMMANDS, presets=PRESETS)
    assert planned.what == what and planned.data.sequence_length == 4096


def test_the_size_of_the_comparison_is_the_one_it_says() -> None:
    model = parsed("--config", "benchmark_58m").model
    assert (model.width, model.num_layers, model.num_heads, model.mlp_width, model.vocab_size) == (
        (512, 8, 8, 1376, 32000)
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the extra oracle")
def test_a_comparison_reports_both_sides(tmp_path, capfd) -> None:
    line = ("train", "--against", "transformers", "--config", "tiny/pretrain", *QUICK)
    measured = result(capfd, tmp_path, *line)
    ours, theirs = measured["llama_jax"], measured["transformers"]
    assert ours["parameters"] == theirs["parameters"]
    assert measured["ratio"] == pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"])
    assert len(measured["ratio_by_turn"]["all"]) == 2
    assert min(ours["peak_host_bytes"], theirs["peak_host_bytes"]) > 100 * 2**20
