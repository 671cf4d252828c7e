"""The run directory."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.processes import lock
from llama_jax.core.processes.lock import WriterLock
from llama_jax.core.run_directory import RunDirectory, load_config, newest_run, open_run
from llama_jax.core.settings.command_line import parse
from llama_jax.model.config import ModelConfig, RopeScaling
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class Config:
    """Train."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimization."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""
    run_dir: str | None = None
    """Folder."""


def opened(path, config=Config(), **options) -> RunDirectory:
    """A run that is known to go on."""
    run = open_run(path, config, **({"command": "train", "free": ("training.steps", "mesh")} | options))
    run.begin()
    return run


def begun(path, config=Config(), **options) -> RunDirectory:
    """The directory of a run that has made a step."""
    run = opened(path, config, **options)
    run.metrics.write_text('{"step": 1}\n')
    run.close()
    return run


def refusal(path, config=Config(), **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, config, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_config_of_a_run_can_be_given_again(tmp_path):
    config = Config(training=TrainingConfig(batch_ramp=((0, 4), (9, 32))), run_dir="a # b")
    run = opened(tmp_path / "a" / "run", config)
    run.close()
    assert run.config_path.read_text().startswith(
        f"# python -m llama_jax.train --config {tmp_path}/a/run/config.yaml\n"
    )
    again = parse(Config, ["--config", str(run.config_path)], command="train", commands={"train": Config})
    assert again == config
    assert load_config(run.path)["training"]["batch_ramp"] == [[0, 4], [9, 32]]
    opened(tmp_path / "a" / "run", again).close()


def test_the_environment_is_recorded_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_dump_to=")
    run = opened(tmp_path)
    run.close()
    text = run.environment.read_text()
    recorded = json.loads(text)
    assert "hunter2" not in text
    assert recorded["xla_flags"].endswith("--xla_dump_to=")
    assert recorded["processes"] == 1
    assert recorded["devices"] >= 1
    assert re.fullmatch(r"\d+(\.\d+)+", recorded["packages"]["jax"])
    offset = datetime.fromisoformat(recorded["started"]).utcoffset()
    assert offset is not None
    assert not offset


def test_what_matters_may_not_change(tmp_path):
    begun(tmp_path)
    changed = Config(model=ModelConfig(width=256, rope_scaling=RopeScaling()), training=TrainingConfig(steps=7))
    message = refusal(tmp_path, changed)
    assert message.startswith(f"--run_dir {tmp_path}: model.rope_scaling is null in this run, not ")
    assert "; model.width is 128 in this run, not 256; give the same value, or another --run_dir" in message
    assert "training.steps" not in message
    assert load_config(tmp_path)["model"]["width"] == 128


def test_a_run_of_another_command_is_not_gone_on_with(tmp_path):
    begun(tmp_path, command="self_instruct judge")
    opened(tmp_path, command="self_instruct judge").close()
    message = f"--run_dir {tmp_path}: is a run of self_instruct judge; choose another --run_dir for train"
    assert refusal(tmp_path) == message


def test_before_the_first_step_the_config_may_be_corrected(tmp_path):
    opened(tmp_path).close()
    begun(tmp_path, Config(model=ModelConfig(width=256)))
    assert load_config(tmp_path)["model"]["width"] == 256
    assert "model.width is 256 in this run, not 128" in refusal(tmp_path)


def test_what_is_free_may_change_and_is_recorded(tmp_path):
    begun(tmp_path)
    opened(tmp_path, Config(training=TrainingConfig(steps=7), mesh=MeshConfig(tensor=2))).close()
    assert load_config(tmp_path)["training"]["steps"] == 7
    assert load_config(tmp_path)["mesh"]["tensor"] == 2


def test_a_free_name_frees_no_name_it_begins(tmp_path):
    config = Config(training=TrainingConfig(schedule_steps=5))
    begun(tmp_path, config, free=())
    with pytest.raises(UserError, match=r"training\.schedule_steps is 5 in this run, not 6"):
        open_run(
            tmp_path,
            replace(config, training=TrainingConfig(schedule_steps=6)),
            command="train",
            free=("training.schedule", "train", "schedule_steps"),
        )


def test_settings_that_an_older_version_did_not_have_are_no_difference(tmp_path):
    run = begun(tmp_path)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("  vocab_multiple: 128\n", "") + "retired: 3\n")
    opened(tmp_path).close()


def test_never_resume_refuses_progress_and_nothing_else(tmp_path):
    run = opened(tmp_path)
    run.metrics.write_text("")
    (run.checkpoints / "tmp").mkdir(parents=True)
    run.close()
    opened(tmp_path, resume="never").close()
    (run.checkpoints / "5").mkdir()
    assert refusal(tmp_path, resume="never").startswith(f"--resume never: {tmp_path} is a run with progress")
    (run.checkpoints / "5").rmdir()
    run.metrics.write_text('{"step": 1}\n')
    assert "progress" in refusal(tmp_path, resume="never")
    opened(tmp_path, resume="auto").close()
    opened(tmp_path, resume=5).close()


def content_of(folder: Path) -> dict[str, bytes | None]:
    """The content of each file below a folder, and that there is a folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}


def test_what_is_refused_or_does_not_begin_leaves_everything_as_it_was(tmp_path):
    run = begun(tmp_path / "run")
    run.log.write_text("2026-11-27 08:00:00 an old line\n")
    (run.path / "lock").write_text("process 1 on another machine, which was killed\n")
    before = content_of(tmp_path)
    refusal(run.path, Config(model=ModelConfig(width=256)))
    refusal(run.path, resume="never")
    with open_run(run.path, Config(training=TrainingConfig(steps=7)), command="train", free=("training",)) as again:
        again.say("half of it is known")
        again.keep(again.path / "tokenizer.model", b"new")
        assert "in use" in refusal(run.path)
    assert content_of(tmp_path) == before
    with open_run(tmp_path / "a" / "new" / "run", Config(), command="train") as new:
        new.say("nothing came of it")
    assert content_of(tmp_path) == before


def test_what_was_held_is_written_when_a_run_begins(tmp_path, capsys):
    with open_run(tmp_path / "run", Config(), command="train") as run:
        run.say("one")
        run.keep(run.path / "tokenizer.model", b"old")
        run.keep(run.path / "tokenizer.model", b"new")
        assert [path.name for path in run.path.iterdir()] == ["lock"]
        run.begin()
        run.say("two")
        run.begin()
        run.keep(run.losses_before, "[]")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert [line[20:] for line in run.log.read_text().splitlines()] == ["one", "two"]
    names = {"config.yaml", "environment.json", "lock", "log.txt", "losses_before.json", "tokenizer.model"}
    assert {path.name for path in run.path.iterdir()} == names
    assert (run.path / "tokenizer.model").read_bytes() == b"new"


def test_a_run_whose_config_is_gone_is_not_resumed_by_any(tmp_path):
    for name, progress in (("metrics", "metrics.jsonl"), ("checkpoints", "checkpoints/5/manifest.json")):
        run = begun(tmp_path / name)
        run.metrics.unlink()
        (run.path / progress).parent.mkdir(exist_ok=True, parents=True)
        (run.path / progress).write_text('{"step": 1}\n')
        run.config_path.unlink()
        before = content_of(tmp_path)
        assert f"--run_dir {run.path}: has progress, but its config.yaml is gone" in refusal(run.path)
        assert content_of(tmp_path) == before


def test_a_lock_that_its_holder_removed_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    """Between opening the file and locking it: whoever comes then makes another, and there would be two writers."""
    first = WriterLock(tmp_path, "--run_dir here")
    flock = lock.fcntl.flock

    def late(file, operation):
        if first._file is not None:
            first.close(as_found=True)
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    second = WriterLock(tmp_path, "--run_dir here")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        WriterLock(tmp_path, "--run_dir here")
    second.close()


def test_other_processes_write_nothing_but_compare(tmp_path):
    other = opened(tmp_path / "run", is_main_process=False)
    other.say("nothing")
    other.close()
    assert not (tmp_path / "run").exists()
    begun(tmp_path / "run")
    main = opened(tmp_path / "run")
    files = sorted(tmp_path.rglob("*"))
    opened(tmp_path / "run", is_main_process=False).close()
    assert "model.width" in refusal(tmp_path / "run", Config(model=ModelConfig(width=256)), is_main_process=False)
    assert sorted(tmp_path.rglob("*")) == files
    main.close()


HOLDER = """
import sys, time
from llama_jax.core.run_directory import RunDirectory
RunDirectory(sys.argv[1]).lock() if len(sys.argv) == 3 else None
run = RunDirectory(sys.argv[1]); run.lock()
print("locked", flush=True)
time.sleep(600)
"""


def test_one_process_writes_and_death_releases_the_run(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"locked\n"
        message = refusal(tmp_path)
        assert f"in use by process {holder.pid} on {socket.gethostname()};" in message
        assert not (tmp_path / "config.yaml").exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    run = opened(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert "in use" in refusal(tmp_path)
    run.lock()
    run.close()
    opened(tmp_path).close()


def test_a_refused_config_does_not_keep_the_lock(tmp_path):
    begun(tmp_path)
    refusal(tmp_path, Config(model=ModelConfig(width=256)))
    opened(tmp_path).close()


def test_what_is_said_is_printed_and_logged(tmp_path, capsys):
    for word in ("one", "two"):
        run = opened(tmp_path)
        run.say(word)
        run.close()
    assert capsys.readouterr().out == "one\ntwo\n"
    lines = run.log.read_text().splitlines()
    assert [line[20:] for line in lines] == ["one", "two"]
    datetime.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")


def test_the_paths_of_a_run():
    run = RunDirectory("gs://bucket/run")
    names = {p.name for p in (run.config_path, run.checkpoints, run.metrics, run.log, run.curves, run.tensorboard)}
    assert names == {"config.yaml", "checkpoints", "metrics.jsonl", "log.txt", "curves.png", "tensorboard"}
    assert str(run.profile) == "gs://bucket/run/profile"


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        load_config(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: damaged: while parsing"):
        load_config(tmp_path)


def started(path: Path, when: str, *steps: str) -> Path:
    path.mkdir(parents=True)
    (path / "environment.json").write_text(json.dumps({"started": when}))
    for step in steps:
        (path / "checkpoints" / step).mkdir(parents=True)
        (path / "checkpoints" / step / "manifest.json").write_text("{}")
    return path


def test_the_newest_run_that_fits_is_taken(tmp_path):
    first = started(tmp_path / "a", "2025-01-01T00:00:00+00:00", "10")
    started(tmp_path / "b", "2025-02-01T00:00:00+00:00", "10")
    assert newest_run(tmp_path, lambda run: run.name == "a") == first
    assert newest_run(tmp_path, lambda run: False) is None


def test_the_newest_run_is_told_by_its_own_record(tmp_path):
    assert newest_run(tmp_path / "missing") is None
    newest = started(tmp_path / "a" / "nested", "2025-03-01T00:00:00+00:00", "10")
    started(tmp_path / "b", "2025-02-01T00:00:00+00:00", "10", "20")
    started(tmp_path / "without_checkpoint", "2025-04-01T00:00:00+00:00")
    started(tmp_path / "unfinished", "2025-04-01T00:00:00+00:00", "10.tmp")
    (tmp_path / "no_manifest" / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "no_manifest" / "environment.json").write_text('{"started": "2025-05-01"}')
    damaged = started(tmp_path / "damaged", "2025-05-01T00:00:00+00:00", "10")
    (damaged / "environment.json").write_text("{")
    assert newest_run(tmp_path) == newest
