"""A mistake of the user's gets one clear line and exit code 2, and leaves nothing that hinders a second attempt."""

import fcntl
import resource
from pathlib import Path

import command_runs
import pytest

from llama_jax.config import COMMANDS, PRESETS, check_paths
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse
from llama_jax.core.settings.parser import Schema


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capfd, *arguments: object) -> str:
    """The one line that a command answers with."""
    assert command_runs.call(*arguments) == 2
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
    "rows beyond the context": (("--data.sequence_length", 1024), ["1024", "model.context_length 512"]),
    "a vocabulary too large for the corpus": (("--model.vocab_size", 400_000), ["400000"]),
    "streams that do not divide": (("--data.streams", 7), ["data.streams", "7", "training.batch_size 16"]),
    "a pattern that fits nothing": (("--training.trainable", "lora"), ["training.trainable", "lora", "no parameter"]),
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


@pytest.mark.slow
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(folder, capfd) -> None:
    assert command_runs.call("tokenizer", "--vocab_size", 600) == 0
    capfd.readouterr()
    line = refused(capfd, *TINY, "--data.tokenizer", "tokenizer.model")
    assert line.endswith("tokenizer.model has 600 tokens, more than model.vocab_size 512; add --model.vocab_size 600")


BAD = b'{"text": "caf\xe9"}\n{"txet": "no text"}\n'
GOOD = "".join(f'{{"text": "a good text, number {number}"}}\n' for number in range(8)).encode()


def test_what_a_tokenizer_cannot_be_trained_on_is_named(folder, capfd) -> None:
    (folder / "latin1.txt").write_bytes(b"caf\xe9\n")
    (folder / "all.jsonl").write_bytes(BAD)
    (folder / "some.jsonl").write_bytes(BAD + GOOD)
    for command in ("tokenizer", "prepare"):
        line = refused(capfd, command, "--data.source", "latin1.txt", "--vocab_size", 300)
        assert line.endswith(
            "holds nothing that can be used (1 not_utf8), such as latin1.txt bytes 0-5: not UTF-8 at byte 3"
        )
    ask = ("tokenizer", "--vocab_size", 285, "--data.source")
    assert "all.jsonl: holds nothing that can be used (1 not_utf8, 1 missing_field)" in refused(
        capfd, *ask, "all.jsonl"
    )
    assert "2 of 10 documents of some.jsonl cannot be used" in refused(capfd, *ask, "some.jsonl")
    assert "some.jsonl:1: not UTF-8" in refused(capfd, *ask, "some.jsonl", "--data.bad_records", "fail")
    assert not (folder / "tokenizer.model").exists()
    assert command_runs.call(*ask, "some.jsonl", "--data.max_bad_fraction", 0.2) == 0
    said = capfd.readouterr().out
    assert "bad record skipped: some.jsonl:2: no field 'text'" in said
    assert "from 8 documents" in said and said.endswith("bad records left out: 1 not_utf8, 1 missing_field\n")


@pytest.mark.slow
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_an_unknown_setting_and_a_wrong_type(command, capfd) -> None:
    types = Schema(COMMANDS[command]).types
    known, kinds = next(iter(types)), {int: "a whole number", float: "a number"}
    number = next(name for kind in kinds for name, hint in types.items() if hint is kind)
    assert f"did you mean '{known}'?" in refused(capfd, command, f"--{known}s", "x")
    said = refused(capfd, command, f"--{number}", "many")
    assert said == f'error: --{number}: got "many", expected {kinds[types[number]]}'


def test_an_attempt_that_failed_leaves_nothing(small_run, folder, capfd) -> None:
    (folder / "kept").mkdir()
    command = ("pretrain", *small_run.arguments, "--data.tokenizer", "null", "--data.streams", 7)
    for run_dir in ("run", "new/runs/run", "kept"):
        said = refused(capfd, *command, "--run_dir", run_dir, "--model.vocab_size", 290)
        assert "data.streams" in said
    assert [path.relative_to(folder) for path in folder.rglob("*")] == [Path("kept")]


def test_a_run_that_is_refused_stays_as_it_is(small_run, folder, capfd) -> None:
    def files() -> dict[Path, int]:
        kept = (path for path in small_run.run_dir.rglob("*") if path.is_file() and path.name != "lock")
        return {path: path.stat().st_mtime_ns for path in kept}

    before = files()
    command = ("pretrain", *small_run.arguments, "--run_dir", small_run.run_dir)
    assert "seed is 0 in this run, not 1" in refused(capfd, *command, "--seed", 1)
    assert "is a run with progress" in refused(capfd, *command, "--resume", "never")
    assert files() == before


def test_other_text_and_fewer_steps_are_refused(small_run, folder, capfd) -> None:
    run_dir = command_runs.copy_until(small_run.run_dir, folder / "run", [30])
    command = ["pretrain", *small_run.arguments, "--run_dir", run_dir]
    said = refused(capfd, *command, "--training.steps", 20)
    assert said == f"error: training.steps: 20, but {run_dir} is already at step 30"
    corpus = folder / "corpus.jsonl"
    corpus.write_text(small_run.corpus.read_text() + '{"text": "one more"}\n')
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace(str(small_run.corpus), str(corpus)))
    said = refused(capfd, *command, "--data.source", corpus)
    assert "the documents or the tokenizer are not those the run began with" in said


USES = {
    "no such model": (["generate", "--model", "nowhere"], "nowhere: no such file or directory"),
    "not a run": (["generate", "--model", "."], "holds no model"),
    "not a model": (["evaluate", "--model", "text.txt"], "neither a GGUF nor a llama2c model"),
    "no such step": (["generate", "--step", 4], "no checkpoint step 4 in"),
    "no such prompts": (["generate", "--prompts", "nowhere.txt"], "nowhere.txt: no such file"),
    "no prompt": (["generate", "--prompts", "empty.txt"], "empty.txt: has no prompt"),
    "a directory of prompts": (["generate", "--prompts", "."], "--prompts .: is a directory; name a file"),
    "prompts in Latin 1": (
        ["generate", "--prompts", "latin1.txt"],
        "latin1.txt: not UTF-8 at byte 3; save",
    ),
    "too many tokens": (["generate", "--max_new_tokens", 511], "exceed the context of 512"),
    "no such text": (["evaluate", "--data", "nowhere.txt"], "nowhere.txt"),
    "rows too long": (["evaluate", "--sequence_length", 600], "exceeds the model's context of 512"),
    "no such tokenizer": (["evaluate", "--tokenizer", "nowhere.model"], "nowhere.model: no such file"),
}


@pytest.mark.parametrize("mistake", USES)
def test_using_a_model_names_the_mistake_in_one_line(mistake, small_run, folder, capfd) -> None:
    (folder / "text.txt").write_text("text")
    (folder / "empty.txt").write_text("\n\n")
    (folder / "latin1.txt").write_bytes("café\n".encode("latin1"))
    arguments, named = USES[mistake]
    if "--model" not in arguments:
        arguments = [*arguments, "--model", small_run.run_dir]
    assert named in refused(capfd, *arguments)


PATHS = {
    "no such model": (["generate", "--model", "nowhere"], "--model nowhere: no such file or directory"),
    "a folder without a model": (["evaluate", "--model", "empty"], "--model empty: holds no model;"),
    "a model of no format": (
        ["sft", "--model", "latin1.txt"],
        "--model latin1.txt: neither a GGUF nor a llama2c model",
    ),
    "no such source": (["convert", "--source", "empty/model"], "--source empty/model: no such file or directory"),
    "no such adapter": (["generate", "--adapters", "nowhere"], "--adapters nowhere: no such file or directory"),
    "one of the adapters": (["generate", "--adapters", "[empty, x]"], "--adapters empty: holds no model;"),
    "no such text": (["pretrain", "--data.source", "no.jsonl"], "data.source: no file or directory no.jsonl"),
    "nothing of that pattern": (["prepare", "--data.source", "*.jsonl"], "data.source: nothing matches *.jsonl"),
    "an unknown ending": (["tokenizer", "--data.source", "data.csv"], "data.csv has an unsupported extension"),
    "what comes with another command": (["pretrain", "--data.source", "starter"], "no file or directory starter"),
    "one of a mixture": (["lora", "--data.mixture", "[[starter, 1], [x, 1]]"], "data.mixture: no file or directory x"),
    "no such held-out data": (["preview sft", "--data.validation_source", "x"], "data.validation_source: no file or"),
    "no such questions": (["evaluate", "--task", "exact_match", "--data", "x"], "--data: no file or directory x"),
    "a file for a run": (["pretrain", "--run_dir", "latin1.txt"], "latin1.txt is a file, where a directory is needed"),
    "a file below": (["sft", "--run_dir", "latin1.txt/run"], "latin1.txt is a file, where a directory is needed"),
}


@pytest.mark.parametrize("mistake", PATHS)
def test_a_wrong_path_is_refused_before_anything_is_imported_or_written(mistake, folder) -> None:
    (folder / "latin1.txt").write_bytes("café\n".encode("latin1"))
    (folder / "data.csv").touch()
    (folder / "empty").mkdir()
    before = sorted(folder.iterdir())
    (command, *argv), named = PATHS[mistake]
    config = parse(COMMANDS[command], argv, command=command, commands=COMMANDS, presets=PRESETS)
    with pytest.raises(UserError) as refusal:
        check_paths(config)
    assert named in str(refusal.value)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "line",
    [
        "generate",
        "generate --model owner/name --adapters owner/adapter",
        "pretrain --data.source tfds:lm1b:train",
        "lora --data.source pydoc",
        "sft --data.source [st]*.jsonl",
        "evaluate --data pydoc",
        "plan --data.source nowhere.jsonl",
        "pretrain --data.source nowhere.jsonl --dry_run",
    ],
)
def test_what_may_be_there_or_is_not_needed_is_not_refused(line, folder) -> None:
    (folder / "test.jsonl").touch()
    command, *argv = line.split()
    check_paths(parse(COMMANDS[command], argv, command=command, commands=COMMANDS, presets=PRESETS))


def test_a_wrong_path_is_refused_at_once(folder) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = command_runs.run("lora", "--model", "nowhere", folder=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (result.code, result.errors) == (2, "error: --model nowhere: no such file or directory\n")
    assert after.ru_utime - before.ru_utime < 1.5, "0.5 s of a processor's time"


def test_a_tokenizer_file_is_not_overwritten(small_run, capfd) -> None:
    said = refused(capfd, "tokenizer", "--data.source", small_run.corpus, "--output", small_run.tokenizer)
    assert said == f"error: --output {small_run.tokenizer}: exists; name another file, or add --overwrite"


def test_a_run_in_use_is_refused(small_run, folder, capfd) -> None:
    (folder / "run").mkdir()
    with (folder / "run" / "lock").open("w") as lock:
        lock.write("process 7 on another_host\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused(capfd, "pretrain", *small_run.arguments, "--run_dir", "run")
    assert "run: in use by process 7 on another_host; wait for it to end, or choose another --run_dir" in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ppo.minibatches", "stage ppo: training.batch_size: 8 rows of 256 tokens may not hold the 64 completions"),
        ("reward.training.batch_size", "stage reward: training.batch_size: 1 rows are not divisible by the 8 devices"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(small_run, folder, capfd, setting, message):
    rows = ("--sft.training.batch_size", 8)  # which the devices divide
    said = refused(
        capfd,
        "rlhf",
        "--config",
        "tiny/rlhf",
        "--sft.model",
        small_run.run_dir,
        "--run_dir",
        "run",
        *rows,
        f"--{setting}",
        1,
    )
    assert said.startswith(f"error: {message}") and not (folder / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("reward_model", "MODEL", "stage ppo: --reward_model MODEL: is a language model, which gives no score"),
        ("comparison.judge", "exact", "comparison.judge: exact: missing a required argument: 'answer'; it is called"),
        (
            "ppo.rewards.functions",
            "exact",
            "stage ppo: rewards.functions: exact: missing a required argument: 'answer'",
        ),
    ],
)
def test_who_could_not_judge_in_the_last_stage_is_refused_before_the_first(
    small_run, folder, capfd, setting, value, message
) -> None:
    value, message = (text.replace("MODEL", str(small_run.run_dir)) for text in (value, message))
    line = (
        "--config",
        "tiny/rlhf",
        "--sft.model",
        small_run.run_dir,
        "--run_dir",
        "run",
        "--sft.training.batch_size",
        8,
    )
    said = refused(capfd, "rlhf", *line, f"--{setting}", value)
    assert said.startswith(f"error: {message}") and not (folder / "run").exists()


def test_a_mistake_ends_a_real_process_with_one_line(small_run, folder) -> None:
    command = ("pretrain", *small_run.arguments, "--mesh.tensor", 3, "--run_dir", "run")
    result = command_runs.run(*command, folder=folder)
    assert (result.code, result.errors.count("\n")) == (2, 1)
    assert result.errors.startswith("error: mesh: data 1 x fsdp -1 x sequence 1 x tensor 3 does not make 1 devices")


def test_an_unknown_command_is_named_and_known_ones_are_listed(folder) -> None:
    result = command_runs.run("pretrian", folder=folder)
    assert (result.code, result.errors.count("\n")) == (2, 1)
    assert result.errors.startswith("error: pretrian: unknown command;")
    assert "did you mean 'pretrain'?" in result.errors
    listed = command_runs.run(folder=folder)
    assert listed.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in listed.output


@pytest.mark.slow
def test_a_mistake_that_only_one_process_can_see_ends_both_processes(small_run, folder) -> None:
    wrong = ("--data.tokenizer", "null", "--model.vocab_size", 5000, "--run_dir", "run")
    for result in command_runs.run_two("pretrain", *small_run.arguments, *wrong, folder=folder):
        assert (result.code, result.errors.count("\n")) == (2, 1), result
        assert "vocab_size: 5000 is too large for this text" in result.errors
