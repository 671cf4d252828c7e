"""Using a trained run: generate and evaluate from its checkpoint, by what they print."""

import json
import math

import command_runs
import pytest
import yaml

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.settings.command_line import parse


def last_line(capfd, *arguments: object) -> dict:
    """The JSON object that a command ends with."""
    assert command_runs.call(*arguments, "--json") == 0
    return json.loads(capfd.readouterr().out.strip().splitlines()[-1])


def test_evaluate_repeats_the_validation_of_the_run(tiny_run, capfd) -> None:
    result = last_line(capfd, "evaluate", "--model", tiny_run)
    record = command_runs.metrics(tiny_run)[-1]
    assert result["loss"] == pytest.approx(record["validation_loss"], rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(record["validation_bits_per_byte"], rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["model"].endswith("step 60")


def test_evaluate_measures_any_file(tiny_run, tmp_path, capfd) -> None:
    text = "The function returns a list of the values in the dictionary.\n\n" * 40
    (tmp_path / "other.txt").write_text(text)
    result = last_line(capfd, "evaluate", "--model", tiny_run, "--data", tmp_path / "other.txt")
    assert result["bytes"] == len(text)
    assert 1.0 < result["bits_per_byte"] < 8.0
    assert result["zlib_bits_per_byte"] < 1.0


@pytest.mark.slow
def test_prompts_of_a_batch_are_continued_as_each_alone(tiny_run, tmp_path, capfd) -> None:
    prompts = ["The ", "Return the value of", "a"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    greedy = ("--temperature", 0, "--max_new_tokens", 16)
    together = last_line(capfd, "generate", "--model", tiny_run, *greedy, "--prompts", tmp_path / "prompts.txt")
    alone = [last_line(capfd, "generate", "--model", tiny_run, *greedy, "--prompt", prompt) for prompt in prompts]
    assert together["texts"] == [answer["text"] for answer in alone]
    assert all(text.startswith(prompt) for text, prompt in zip(together["texts"], prompts, strict=True))


@pytest.mark.slow
def test_streamed_text_is_the_text_of_the_json(tiny_run, capfd) -> None:
    arguments = ("generate", "--model", tiny_run, "--temperature", 0, "--max_new_tokens", 20, "--prompt", "The ")
    expected = last_line(capfd, *arguments)["text"]
    assert command_runs.call(*arguments) == 0
    assert capfd.readouterr().out.rstrip("\n") == expected.rstrip("\n")


def test_an_empty_prompt_starts_a_document(tiny_run, capfd) -> None:
    result = last_line(capfd, "generate", "--model", tiny_run, "--prompt", "", "--max_new_tokens", 4)
    assert result["tokens"] <= 4


def test_the_run_directory_holds_what_it_should(tiny_run) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "curves.png", "log.txt", "tensorboard"} <= names
    assert (tiny_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = (tiny_run / "printed").read_text()
    assert "process 0 of 1, 1 devices (cpu)" in printed
    assert "attention xla" in printed
    assert "zlib needs" in printed
    records = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["tokens"] == 60 * 16 * 64
    assert records[-1]["model_flops_utilization"] is None
    assert records[-1]["loss"] < records[0]["loss"] - 1


def test_printed_config_is_read_back_equal(tmp_path, capsys) -> None:
    arguments = ["--config", "pretrain_65b", "--training.steps", "7", "--training.batch_ramp", "[[0, 512], [5, 2048]]"]
    kind = COMMANDS["pretrain"]
    asked = parse(kind, arguments, command="pretrain", commands=COMMANDS, presets=PRESETS)
    with pytest.raises(SystemExit):
        parse(kind, [*arguments, "--print_config"], command="pretrain", commands=COMMANDS, presets=PRESETS)
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = parse(kind, ["--config", str(printed)], command="pretrain", commands=COMMANDS, presets=PRESETS)
    assert again == asked
    assert yaml.safe_load(printed.read_text())["model"]["num_layers"] == 80


@pytest.mark.parametrize("size", ["7b", "13b", "33b", "65b", "tinyllama"])
def test_published_configs_ask_for_the_published_tokens(size) -> None:
    kind = COMMANDS["pretrain"]
    config = parse(kind, ["--config", f"pretrain_{size}"], command="pretrain", commands=COMMANDS, presets=PRESETS)
    tokens = config.training.steps * config.training.batch_size * config.data.sequence_length
    published = {"7b": 1.0e12, "13b": 1.0e12, "33b": 1.4e12, "65b": 1.4e12, "tinyllama": 3.0e12}[size]
    assert tokens == pytest.approx(published, rel=1e-5)


def test_dry_run_of_the_7b_config_prints_the_plan_and_allocates_nothing(tmp_path, monkeypatch, capfd) -> None:
    """A smaller batch than the config's keeps compilation short; parameters and their bytes are those of the 7B."""
    monkeypatch.chdir(tmp_path)
    small = ("--training.batch_size", 8, "--data.sequence_length", 256, "--compute.attention", "xla")
    assert command_runs.call("pretrain", "--config", "pretrain_7b", *small, "--dry_run") == 0
    printed = capfd.readouterr().out
    assert "6,738,415,616 parameters" in printed
    assert "= 2,048 tokens a step" in printed
    # A float32 eighth of the matrices, and the 65 norms whole.
    each = (6_738_415_616 - 65 * 4096) // 8 * 4 + 65 * 4096 * 4
    assert f"{each:,} bytes a device" in printed
    assert f"{6 * (6_738_415_616 - 32000 * 4096) + 6 * 32 * 4096 * 256:,} a token" in printed
    assert not list(tmp_path.iterdir())
