"""Ctrl-C ends a command that uses a model, whenever it comes, with one line and code 130, and leaves nothing half
written."""

import signal
import time
from pathlib import Path

import command_runs
import pytest
from sweeps import some


def interrupted(line: list[object], seconds: float, folder: Path) -> command_runs.Ended:
    """How a command ended that was interrupted so many seconds after its start."""
    output = folder / "printed"
    with command_runs.started(*line, output=output) as process:
        time.sleep(seconds)
        assert process.poll() is None, output.read_text()
        process.send_signal(signal.SIGINT)
        return command_runs.ended(process, output, timeout=60)


# Python starts up in some hundredths of a second, JAX in one or two seconds; then there is reading, compiling and
# computing, all of it for longer than the last of these.
MOMENTS = [0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0]


@pytest.mark.parametrize("seconds", some(MOMENTS, {4.0}))
def test_generate_is_interrupted_at_any_moment(small_run, tmp_path, seconds) -> None:
    (tmp_path / "prompts.txt").write_text("a\n" * 512)
    prompts = ("--prompts", tmp_path / "prompts.txt", "--max_new_tokens", 440)
    ended = interrupted(["generate", "--model", small_run.run_dir, *prompts], seconds, tmp_path)
    assert (ended.code, ended.errors) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("command", ["evaluate", "convert", "preview", "tokenizer", "plan", "doctor"])
def test_other_commands_are_interrupted_too(small_run, tmp_path, command, seconds) -> None:
    text = ("--data.source", "pydoc")
    arguments = {
        "evaluate": ("--model", small_run.run_dir, "--data", "pydoc"),
        "convert": ("--source", small_run.run_dir, "--target", tmp_path / "out", "--format", "hf"),
        "preview": (*text, "--measured_tokens", 10**8),
        "tokenizer": (*text, "--output", tmp_path / "out", "--vocab_size", 30000),
        "plan": ("--topology", "v5e:2x2", "--model.num_layers", 4),
        "doctor": ("--seconds", 20),
    }[command]
    ended = interrupted([command, *arguments], seconds, tmp_path)
    assert ended.code == 130 and ended.errors.splitlines()[-1:] == ["interrupted"], ended
    assert ended.errors.count("\n") == 1 and "Traceback" not in ended.output
    assert {path.name for path in tmp_path.iterdir()} == {"printed", "printed.errors"}


@pytest.mark.slow
def test_a_single_text_is_interrupted_while_it_is_shown(small_run, tmp_path) -> None:
    output = tmp_path / "printed"
    line = ["generate", "--model", small_run.run_dir, "--prompt", "a", "--max_new_tokens", 500]
    with command_runs.started(*line, output=output) as process:
        while not output.read_text():
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        ended = command_runs.ended(process, output, timeout=60)
    assert (ended.code, ended.errors) == (130, "interrupted\n")
