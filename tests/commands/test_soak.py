"""A long run in which everything fails again and again: it ends with no human action, with the bits of one in which
nothing did, and most of its steps were made once."""

import json
import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_runs import checkpoint, ended, metrics
from test_faults import job, reports
from test_grpo import arguments_of, untimed, written

pytestmark = pytest.mark.slow

SEEN = {
    "killed": r"was ended by SIGKILL",
    "asked": r"exit code 75",
    "stopped": r"is silent|said nothing for",
    "stuck": r"nothing for \S+ s \(supervise.step_seconds\)",
    "full": r"checkpoint step \d+ was not saved",
    "corrupted": r"checkpoint step \d+ does not verify",
}
"""Every kind of fault, and what is said of it. That which is asked to end saves and leaves for good, with 75: whoever
asked it to starts the same command again, a scheduler or this file."""

BAD_RECORDS = '{"text": "cut off\n{"other": "no text"}\n{"text": 5}\n'


@dataclass(frozen=True)
class Fault:
    how: str
    rank: int
    step: int


@dataclass(frozen=True)
class Soak:
    """A run that is made twice, once with faults of processes and of storage; bad losses and records are part of the
    computation, and so of both."""

    steps: int
    processes: int
    every: int
    """Steps between two faults, about."""
    kinds: tuple[str, ...]
    seed: int
    limits: tuple[object, ...]

    def faults(self) -> list[Fault]:
        """Drawn at random, each kind as often as the others."""
        draw, kinds, faults = random.Random(self.seed), [], []
        for step in range(self.every, self.steps - self.every // 2, self.every):
            kinds = kinds or draw.sample(self.kinds, len(self.kinds))
            near = step + draw.randint(-self.every // 5, self.every // 5)
            faults.append(Fault(kinds.pop(), draw.randrange(self.processes), near))
        return faults

    def bad_losses(self) -> list[int]:
        draw = random.Random(self.seed + 1)
        return sorted(draw.sample(range(self.steps // 10, self.steps), max(2, self.steps // 100)))


def soaked(soak: Soak, command: list[object], folder: Path, **unfailing: str) -> Path:
    """Make the run with its faults, and print a table of them; gives its directory, each fault having been seen, and
    at least four fifths of the steps having been made once."""
    specified = [
        f"{fault.how}:{rank}:{fault.step}:{mark_of(fault, folder)}"
        for fault in soak.faults()
        for rank in ([fault.rank] if fault.how != "full" else range(soak.processes))  # they share a disk
    ]
    environment = {"FAULTS": " ".join(specified), "BEGUN": str(folder / "begun"), **unfailing}
    line = (*command, *soak.limits, "--run_dir", folder / "run")
    stops: list[str] = []
    while True:
        with job(soak.processes, *line, folder=folder, **environment) as process:
            result = ended(process, folder / "printed", timeout=3600)
        if result.code != 75:
            break
        stops.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} exit code 75, the same command again")
    assert result.code == 0, result
    assert len(stops) == sum(fault.how == "asked" for fault in soak.faults())
    assert productive(soak, folder, stops) >= 0.8
    return folder / "run"


def mark_of(fault: Fault, folder: Path) -> Path:
    """The file that is made when a fault happens."""
    return folder / f"{fault.step}.{fault.how}"


def productive(soak: Soak, folder: Path, stops: list[str]) -> float:
    """The share of the steps that were begun which are part of the run. Prints how each fault was seen, which it must
    be, and the longest pause between two new steps from there to the next fault."""
    run_dir, faults = folder / "run", soak.faults()
    begun = [(int(step), float(at)) for step, at in map(str.split, (folder / "begun").read_text().splitlines())]
    first = dict(reversed(begun))
    said = said_at([reports(run_dir), (run_dir / "log.txt").read_text(), *stops])
    print(f"\n{'step':>5} {'fault':<10} {'process':>7} {'pause':>7}  seen")
    happened = [mark_of(fault, folder).stat().st_mtime for fault in faults] + [math.inf]
    ends = [fault.step for fault in faults[1:]] + [soak.steps]
    for number, (fault, end) in enumerate(zip(faults, ends, strict=True)):
        # Process 0, whose steps these are, may be one behind that which fails.
        pause = max(first[step + 1] - first[step] for step in range(fault.step - 1, end - 1))
        of_it = [text for time, text in said if int(happened[number]) <= time <= happened[number + 1]]
        seen = next((text[:120] for text in of_it if re.search(SEEN[fault.how], text)), None)
        rank = fault.rank if fault.how != "full" else "all"
        print(f"{fault.step:>5} {fault.how:<10} {rank:>7} {pause:>5.1f} s  {seen}", flush=True)
        assert seen is not None, fault
    share = soak.steps / len(begun)
    print(f"{soak.steps} steps, {len(faults)} faults, {len(begun)} steps begun in all: {share:.1%} were productive")
    seconds = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["wall_seconds"]
    print("seconds by cause:", ", ".join(f"{cause} {took:.1f}" for cause, took in seconds.items()))
    return share


def said_at(texts: Iterable[str]) -> list[tuple[float, str]]:
    """What was said when, in order."""
    lines = [line for text in texts for line in re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)", text, re.M)]
    return sorted((datetime.fromisoformat(f"{time}+00:00").timestamp(), text) for time, text in lines)


def unfailing(soak: Soak, command: list[object], folder: Path, **environment: str) -> Path:
    """The same run in which nothing of that happens."""
    folder.mkdir()
    with job(soak.processes, *command, "--run_dir", folder / "run", folder=folder, **environment) as process:
        result = ended(process, folder / "printed", timeout=1800)
    assert result.code == 0, result
    return folder / "run"


LIMITS = (
    *("--supervise.restarts", 4, "--supervise.pause_seconds", 0.5, "--supervise.step_seconds", 8),
    *("--supervise.other_seconds", 120, "--distributed.heartbeat_seconds", 8, "--distributed.timeout_seconds", 120),
)


def soak_of_pretrain(soak: Soak, save_every: int, small_run, folder: Path) -> None:
    corpus = folder / "corpus.jsonl"
    corpus.write_text(BAD_RECORDS + small_run.corpus.read_text())
    settings = {
        "data.source": corpus,
        "data.max_bad_fraction": 0.5,
        "training.steps": soak.steps,
        "training.evaluate_every": soak.steps,  # one that is due as a run is asked to end would be left out
        "checkpoints.every": save_every,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    command = ["pretrain", *small_run.arguments, *arguments]
    bad = {"BAD_LOSSES": " ".join(map(str, soak.bad_losses()))}
    run_dir, expected = soaked(soak, command, folder, **bad), unfailing(soak, command, folder / "unfailing", **bad)
    records = metrics(run_dir)
    assert records == metrics(expected)
    assert records[-1]["skipped_updates"] == len(soak.bad_losses())
    assert sum(records[-1]["dropped_records"].values()) >= 3
    # Positions also hold where the streams of other processes were when the run was last resumed, which nobody reads.
    assert checkpoint(run_dir, soak.steps)["leaves"] == checkpoint(expected, soak.steps)["leaves"]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_short_run_in_which_everything_fails(seed, small_run, tmp_path):
    soak = Soak(steps=150, processes=2, every=20, kinds=tuple(SEEN), seed=seed, limits=LIMITS)
    soak_of_pretrain(soak, 4, small_run, tmp_path)


@pytest.mark.timeout(5400)
def test_a_thousand_steps_in_which_everything_fails(small_run, tmp_path):
    soak = Soak(steps=1000, processes=2, every=50, kinds=tuple(SEEN), seed=0, limits=LIMITS)
    soak_of_pretrain(soak, 10, small_run, tmp_path)


@pytest.mark.timeout(1200)
def test_a_run_of_grpo_in_which_everything_fails(small_run, tmp_path):
    kinds = ("killed", "asked", "stuck", "corrupted")
    limits = ("--supervise.restarts", 4, "--supervise.pause_seconds", 0.5, "--supervise.step_seconds", 20)
    soak = Soak(steps=40, processes=1, every=8, kinds=kinds, seed=0, limits=limits)
    changes = {"training.steps": soak.steps, "training.evaluate_every": soak.steps, "checkpoints.every": 1}
    command = ["grpo", *arguments_of(small_run.run_dir, written(tmp_path), **changes)]
    run_dir, expected = soaked(soak, command, tmp_path), unfailing(soak, command, tmp_path / "unfailing")
    assert untimed(run_dir) == untimed(expected)
    assert checkpoint(run_dir, soak.steps) == checkpoint(expected, soak.steps)
