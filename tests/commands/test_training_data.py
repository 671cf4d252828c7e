"""What a run says and records of its data: sources, epochs, bad records; and how workers change none of it."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import command_runs
import pytest
from test_restart import wait_for_steps

BAD_LINES = ["not json", '{"text": 5}', '{"text": ""}', '{"other": "x"}', '{"text": "cut']


def write_corpus(small_run, folder: Path, bad: int) -> tuple[Path, Path]:
    """Two files with the texts of the small run, the second with so many bad records besides."""
    lines = small_run.corpus.read_text().splitlines()
    spoilt = [*lines[25:], *(BAD_LINES[number % len(BAD_LINES)] for number in range(bad))]
    first, second = folder / "first.jsonl", folder / "second.jsonl"
    first.write_text("\n".join(lines[:25]) + "\n")
    second.write_text("\n".join(spoilt) + "\n")
    return first, second


def command(small_run, files: tuple[Path, Path], run_dir: Path, **settings: object) -> list[object]:
    mixture = json.dumps([[str(files[0]), 3.0], [str(files[1]), 1]])
    given = {"data.source": "pydoc", "data.mixture": mixture, "run_dir": run_dir} | {
        name.replace("__", "."): value for name, value in settings.items()
    }
    return ["pretrain", *small_run.arguments, *(part for name, value in given.items() for part in (f"--{name}", value))]


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return [record for record in command_runs.metrics(run_dir) if "validation_loss" in record]


@pytest.fixture
def files(small_run, tmp_path) -> tuple[Path, Path]:
    return write_corpus(small_run, tmp_path, bad=4)


@pytest.mark.slow
def test_a_run_on_a_mixture_with_bad_records_records_both(small_run, files, tmp_path, capfd):
    line = command(small_run, files, tmp_path / "run", data__max_bad_fraction=0.5)
    assert command_runs.call(*line) == 0
    printed = capfd.readouterr().out
    assert f"data: {files[0]}: 24 documents to train on, 75.0% of the rows\n" in printed
    assert f"data: {files[1]}: 18 documents to train on, 25.0% of the rows\n" in printed
    named = [said for said in printed.splitlines() if said.startswith("bad record skipped: ")]
    assert named and all(f"{files[1]}:" in said for said in named)
    last = evaluations(tmp_path / "run")[-1]
    assert last["epochs"].keys() == {*map(str, files)}
    assert last["epochs"][str(files[0])] > last["epochs"][str(files[1])] > 0
    positions = command_runs.checkpoint(tmp_path / "run", 30)["positions"]["position-00000-of-00001.json"]
    dropped = [source[4] for record in positions["streams"].values() for source in record["sources"] if len(source) > 4]
    total = sum(last["dropped_records"].values())
    assert total == sum(count for each in dropped for count in each.values())
    assert len(named) == min(total, 5)


@pytest.mark.slow
def test_too_many_bad_records_end_the_run_with_one_line(small_run, files, tmp_path, capfd):
    assert command_runs.call(*command(small_run, files, tmp_path / "run", data__max_bad_fraction=0.1)) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: data.max_bad_fraction: ")
    assert f"documents of {files[1]} cannot be used (" in said and said.endswith("repair the source, or allow more")
    # What was allowed may be changed, and the run goes on.
    steps = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert command_runs.call(*command(small_run, files, tmp_path / "run", data__max_bad_fraction=0.5)) == 0
    assert steps < 30 == command_runs.metrics(tmp_path / "run")[-1]["step"]


@pytest.mark.slow
def test_the_first_bad_record_ends_a_run_that_is_told_to_fail(small_run, files, tmp_path, capfd):
    assert command_runs.call(*command(small_run, files, tmp_path / "run", data__bad_records="fail")) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"error: {files[1]}:") and "data.bad_records is fail" in said


@pytest.mark.slow
def test_workers_change_nothing_also_when_the_run_is_killed(small_run, files, tmp_path):
    allowed = {"data__max_bad_fraction": 0.5}
    assert command_runs.call(*command(small_run, files, tmp_path / "expected", **allowed)) == 0
    run_dir, output = tmp_path / "run", tmp_path / "printed"
    line = command(small_run, files, run_dir, data__workers=2, **allowed)
    with command_runs.started(*line, output=output) as process:
        assert wait_for_steps(run_dir, output, process, count=5)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        children += [
            int(pid)
            for path in Path(f"/proc/{process.pid}/task").iterdir()
            for pid in (path / "children").read_text().split()
        ]
        process.kill()
        process.wait()
    assert len({*children}) >= 2
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    result = command_runs.run(*command(small_run, files, run_dir, data__workers=1, **allowed), folder=tmp_path)
    assert result.code == 0, result
    expected = command_runs.metrics(tmp_path / "expected")
    found = command_runs.metrics(run_dir)
    assert [record["batch_hash"] for record in found] == [record["batch_hash"] for record in expected]
    assert [record["epochs"] for record in found if "epochs" in record] == [
        record["epochs"] for record in expected if "epochs" in record
    ]
    positions = (command_runs.checkpoint(run, 30)["positions"] for run in (run_dir, tmp_path / "expected"))
    assert next(positions) == next(positions)


@pytest.mark.slow
def test_a_reader_process_that_dies_ends_the_run_with_one_line(small_run, files, tmp_path):
    run_dir, output = tmp_path / "run", tmp_path / "printed"
    line = command(small_run, files, run_dir, data__workers=1, data__max_bad_fraction=0.5, training__steps=100_000)
    with command_runs.started(*line, output=output) as process:
        assert wait_for_steps(run_dir, output, process, count=2)
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        (child,) = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
        os.kill(child, signal.SIGKILL)
        result = command_runs.ended(process, output)
    assert result.code == 1
    assert result.errors == (
        "error: data.workers: reader process 0 of 1 was killed by signal 9; run the same command to resume "
        "from the last checkpoint\n"
    )
