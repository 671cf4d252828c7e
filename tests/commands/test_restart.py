"""A run that is interrupted, in whatever way, and started again is the run that was never interrupted, bit for bit."""

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from command_runs import call, checkpoint, copy_until, ended, metrics, run, started, steps
from conftest import SMALL_STEPS

from llama_jax.data.tokenizers import load_tokenizer


def wait_for(file: Path, word: str, process, seconds: float = 600) -> bool:
    """Whether the word is in the file before the process ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and word in file.read_text():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise TimeoutError(f"'{word}' did not appear in {file}")


def wait_for_steps(run_dir: Path, output: Path, process, count: int = 1) -> bool:
    """Whether the process makes so many steps of its own before it ends."""
    if not wait_for(output, "compiling", process):
        return False
    file = run_dir / "metrics.jsonl"  # cut to the steps of the checkpoint by now
    before = len(file.read_text().splitlines())
    while process.poll() is None:
        if len(file.read_text().splitlines()) >= before + count:
            return True
        time.sleep(0.005)
    return False


def finish_though_killed(
    kills: int, *line: object, run_dir: Path, folder: Path, counts: tuple[int, int], pause: float, devices: int
) -> None:
    """Kill a command so many times, at random, and let it end.

    Args:
        counts: fewest and most steps that it makes before.
        pause: seconds between the last of these and its end, at the most.
    """
    chance, output, line = random.Random(kills), folder / "printed", (*line, "--run_dir", run_dir)
    for _ in range(kills):
        with started(*line, output=output, devices=devices) as process:
            if wait_for_steps(run_dir, output, process, count=chance.randint(*counts)):
                time.sleep(chance.uniform(0, pause))
            process.kill()
            assert ended(process, output).code in (0, -signal.SIGKILL)
    result = run(*line, folder=folder, devices=devices)
    assert result.code == 0, result


def assert_same_run(run_dir: Path, reference: Path) -> None:
    assert metrics(run_dir) == metrics(reference)
    assert checkpoint(run_dir, SMALL_STEPS) == checkpoint(reference, SMALL_STEPS)


def kill_at_random(small_run, run_dir: Path, output: Path, chance: random.Random) -> str | None:
    """Start the command and kill it; returns where that was, or None if the command finished first."""
    in_start_up = chance.random() < 0.25
    with started("pretrain", *small_run.arguments, "--run_dir", run_dir, output=output) as process:
        if in_start_up:
            time.sleep(chance.uniform(0.2, 5.0))
        elif wait_for_steps(run_dir, output, process, count=chance.randint(1, 12)):
            # A step takes milliseconds, a save some tenths of a second.
            time.sleep(chance.uniform(0, 0.3))
        process.kill()
        result = ended(process, output)
    assert result.code in (0, -signal.SIGKILL), result
    if result.code == 0:
        return None
    file, folder = run_dir / "metrics.jsonl", run_dir / "checkpoints"
    made = len(file.read_text().splitlines()) if file.exists() else 0
    saved = steps(run_dir)
    place = f"{'start-up' if in_start_up else 'training'}, {made} steps made, {max(saved, default=0)} saved"
    unfinished: set[str] = set()
    if folder.exists() and not in_start_up:  # there, they may be the remains of an earlier kill
        unfinished = {path.name for path in folder.iterdir()} - {*map(str, saved)}
    return f"{place}, inside a save ({', '.join(sorted(unfinished))})" if unfinished else place


def kill_sweep(small_run, tmp_path: Path, kills: int, seed: int) -> list[str]:
    """Kill runs until there were `kills`, each run going on until it is complete and checked; returns where."""
    chance = random.Random(seed)
    places: list[str] = []
    number = 0
    while len(places) < kills:
        number += 1
        run_dir = tmp_path / f"run_{number}"
        while len(places) < kills and (place := kill_at_random(small_run, run_dir, tmp_path / "printed", chance)):
            places.append(place)
            print(f"seed {seed}, run {number}: killed in {place}")
        result = run("pretrain", *small_run.arguments, "--run_dir", run_dir, folder=tmp_path)
        assert result.code == 0, result
        assert_same_run(run_dir, small_run.run_dir)
    return places


def test_the_small_run_passes_an_epoch(small_run):
    tokenizer = load_tokenizer(small_run.tokenizer)
    texts = [json.loads(line)["text"] for line in small_run.corpus.read_text().splitlines()]
    epoch = sum(len(tokenizer.encode(text, bos=True, eos=True)) for text in texts)
    trained = metrics(small_run.run_dir)[-1]["tokens"]
    assert trained == SMALL_STEPS * 8 * 32
    assert 1.2 * epoch < trained


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_uninterrupted_run(small_run, tmp_path):
    assert len(kill_sweep(small_run, tmp_path, kills=2, seed=86)) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_at_many_points_is_the_uninterrupted_run(small_run, tmp_path):
    places = kill_sweep(small_run, tmp_path, kills=40, seed=0)
    assert sum("inside a save" in place for place in places) >= 5, places
    assert sum("start-up" in place for place in places) >= 3, places
    assert sum(" 0 saved" in place for place in places) >= 1, places


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_the_step_they_interrupt(small_run, tmp_path):
    run_dir, output = tmp_path / "run", tmp_path / "printed"
    command = ("pretrain", *small_run.arguments, "--run_dir", run_dir)
    last = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(*command, output=output) as process:
            assert wait_for_steps(run_dir, output, process, count=5)
            process.send_signal(number)
            result = ended(process, output)
        assert result.code == 75
        made = metrics(run_dir)[-1]["step"]
        asked, told = result.errors.splitlines()
        assert asked == "saving; again ends at once"
        assert told == f"interrupted: saved step {made} of 30; run the same command to resume"
        assert last + 5 <= made < SMALL_STEPS
        assert steps(run_dir)[-1] == made
        assert f"resuming from step {last}\n" in result.output or last == 0
        last = made
    result = run(*command, folder=tmp_path)
    assert result.code == 0 and f"resuming from step {last}\n" in result.output
    # The seconds after a signal are for saving: an evaluation that is due then is left out.
    assert_same_but_for_validation(run_dir, small_run.run_dir)


def assert_same_but_for_validation(run_dir: Path, reference: Path) -> None:
    for record, expected in zip(metrics(run_dir), metrics(reference), strict=True):
        if "validation_loss" not in record:
            expected = {name: expected[name] for name in expected if name != "epochs" and "validation" not in name}
        assert record == expected
    assert checkpoint(run_dir, SMALL_STEPS) == checkpoint(reference, SMALL_STEPS)


def process_seconds(pid: int) -> float:
    """Of processors, that a running process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_a_second_signal_ends_the_run_at_once_even_while_it_compiles(small_run, tmp_path):
    output = tmp_path / "printed"
    # A shape that no other test compiles, so that the compilation cache cannot make it quick.
    slow = ("--model.num_layers", 3, "--seed", random.randrange(2**31), "--run_dir", tmp_path / "run")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = children.ru_utime + children.ru_stime
    with started("pretrain", *small_run.arguments, *slow, output=output) as process:
        assert wait_for(output, "compiling", process)
        before = process_seconds(process.pid)
        while process.poll() is None:  # two that are pending at the same time would be one
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.returncode == 128 + signal.SIGTERM
        said = ended(process, output).errors
    assert said == "saving; again ends at once\nended at once; nothing more is saved\n"
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = children.ru_utime + children.ru_stime - others - before
    assert spent < 2, "compiling takes 10 s of a processor's time"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_same_command_after_the_end_says_so_and_changes_nothing(small_run, tmp_path, capfd):
    run_dir = copy_until(small_run.run_dir, tmp_path / "run", kept=[27, 30])
    before = (run_dir / "metrics.jsonl").read_text()
    assert call("pretrain", *small_run.arguments, "--run_dir", run_dir) == 0
    assert f"{run_dir} is already at step 30; ask for more with --training.steps\n" in capfd.readouterr().out
    assert (run_dir / "metrics.jsonl").read_text() == before
    assert checkpoint(run_dir, 30) == checkpoint(small_run.run_dir, 30)


@pytest.mark.slow
def test_a_run_goes_on_from_the_step_that_is_asked_for(small_run, tmp_path):
    run_dir = copy_until(small_run.run_dir, tmp_path / "run", kept=[12, 18, 24])
    result = run("pretrain", *small_run.arguments, "--run_dir", run_dir, "--resume", 18, folder=tmp_path)
    assert result.code == 0
    assert "--resume 18: checkpoint step 24 dropped\n" in result.output
    assert "resuming from step 18\n" in result.output
    assert_same_run(run_dir, small_run.run_dir)
