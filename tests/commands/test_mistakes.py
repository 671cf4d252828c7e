"""A mistake of the user's gets one clear line and exit code 2, and leaves nothing that hinders a second attempt."""

from pathlib import Path

import command_runs
import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capfd, *arguments: object) -> str:
    """The one line that a command answers with."""
    assert command_runs.call(*arguments) == 2  # pyright: ignore[reportArgumentType]
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


TINY = ("pretrain", "--config", "tiny/pretrain")

MISTAKES = {
    "a wrong key": (("--training.stepz", 3), ["--training.stepz", "did you mean 'training.steps'"]),
    "a wrong type": (("--training.steps", "many"), ["training.steps", "many", "whole number"]),
    "an impossible value": (("--data.validation_fraction", 2.0), ["data.validation_fraction", "2.0"]),
    "an unknown size": (("--model.size", "llama_7"), ["llama_7", "did you mean 'llama_7b'"]),
    "values that contradict": (("--training.microbatches", 3), ["training.microbatches", "3", "16"]),
    "a missing corpus": (("--data.source", "nowhere.jsonl"), ["nowhere.jsonl"]),
    "a missing tokenizer": (("--data.tokenizer", "nowhere.model"), ["nowhere.model", "no such file"]),
    "a mesh of other size": (("--mesh.fsdp", 3), ["mesh", "fsdp 3", "8 devices"]),
    "a mesh that does not divide": (("--mesh.tensor", 8, "--model.num_kv_heads", 4), ["mesh.tensor", "8", "4"]),
    "a batch that does not divide": (("--training.batch_size", 12), ["12", "8 devices"]),
    "rows beyond the context": (("--data.sequence_length", 512), ["512", "model.context_length 256"]),
    "a vocabulary too large for the corpus": (("--model.vocab_size", 400_000), ["400000"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_pretrain_names_the_mistake_in_one_line(mistake, folder, capfd) -> None:
    arguments, named = MISTAKES[mistake]
    line = refused(capfd, *TINY, *arguments)
    for word in named:
        assert word in line


def test_a_missing_config_file_is_named(folder, capfd) -> None:
    assert "tiny/pretrian" in refused(capfd, "pretrain", "--config", "tiny/pretrian")


def test_a_config_of_another_command_is_recognised(folder, capfd) -> None:
    line = refused(capfd, "generate", "--config", "tiny/pretrain")
    assert "'pretrain'" in line
    assert "'generate'" in line


def test_a_typing_error_in_a_file_names_file_and_line(folder, capfd) -> None:
    (folder / "mine.yaml").write_text("training:\n  stepz: 3\n")
    line = refused(capfd, "pretrain", "--config", "mine.yaml")
    assert "mine.yaml" in line
    assert "training.steps" in line


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(folder, capfd) -> None:
    assert command_runs.call("tokenizer", "--vocab_size", 600) == 0
    capfd.readouterr()
    line = refused(capfd, *TINY, "--data.tokenizer", "tokenizer.model")
    assert "600" in line
    assert "model.vocab_size 512" in line


def test_a_corrected_second_attempt_works_in_the_same_folder(folder, capfd) -> None:
    short = (*TINY, "--run_dir", "run", "--training.steps", 2, "--tracking.tensorboard", "false")
    refused(capfd, *short, "--model.vocab_size", 400_000)
    refused(capfd, *short, "--training.batch_size", 12)
    assert command_runs.call(*short) == 0
    assert [record["step"] for record in command_runs.metrics(folder / "run")] == [1, 2]
    capfd.readouterr()
    line = refused(capfd, *short, "--training.peak_learning_rate", 0.5)
    assert "training.peak_learning_rate is 0.003 in this run, not 0.5" in line
    assert "step 7" in refused(capfd, *short, "--resume", 7)


def test_a_model_that_is_not_there_is_named(folder, capfd) -> None:
    line = command_line_after_start(capfd, "generate", "--model", "runs/none")
    assert "runs/none: no such file or directory" in line


def command_line_after_start(capfd, *arguments: object) -> str:
    """The error of a command that says who it is first."""
    assert command_runs.call(*arguments) == 2  # pyright: ignore[reportArgumentType]
    return capfd.readouterr().err.strip().splitlines()[-1]
