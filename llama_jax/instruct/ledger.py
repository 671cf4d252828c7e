"""The files of a run that grow by rounds, and a record of each round, written last. What a kill left of a round without
its record is dropped, and the round is made again from the answers that are kept."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_jax.core.files import GrowingFile
from llama_jax.core.recording.metrics import JsonLines, read_metrics
from llama_jax.core.run_directory import RunDirectory
from llama_jax.instruct.pool import Candidate
from llama_jax.instruct.tasks import Task, task_records


class RoundFiles:
    """JSON Lines files of a run, each line with the number of its round.

    Args:
        run: The run, begun.
        names: Of the files, without `.jsonl`.
    """

    def __init__(self, run: RunDirectory, *names: str) -> None:
        self.rounds = _unbroken(read_metrics(run.metrics))
        """A record of each round, those of earlier lives included."""
        last = len(self.rounds)
        self.paths = {name: Path(run.path) / f"{name}.jsonl" for name in names}
        self._files = {
            name: GrowingFile(path, keep=lambda line: last > 0 and -1 < _round_of(line) <= last)
            for name, path in self.paths.items()
        }
        self._metrics = JsonLines(run.metrics, last)

    def read(self, name: str) -> list[dict[str, Any]]:
        """All lines of a file."""
        with self.paths[name].open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def write(self, name: str, record: Mapping[str, Any], *, before: bool = False) -> None:
        """Add a line of the round that is under way.

        Args:
            before: It belongs to no round, and comes before the first.
        """
        number = 0 if before else len(self.rounds) + 1
        self._files[name].write(json.dumps({**record, "round": number}, ensure_ascii=False))

    def end_round(self, numbers: Mapping[str, Any]) -> None:
        """All lines of the round are written; `numbers` is what else is to be known of it."""
        record = {"step": len(self.rounds) + 1, **numbers}
        self._metrics.write(record)
        self.rounds.append(record)

    def close(self) -> None:
        """Finish the files."""
        for file in (*self._files.values(), self._metrics):
            file.close()


class Ledger:
    """What was proposed in a run, `candidates.jsonl`, and what was kept of it, `tasks.jsonl`.

    Args:
        run: The run, begun.
        seeds: Tasks to open tasks.jsonl with.
    """

    def __init__(self, run: RunDirectory, seeds: Sequence[Task] = ()) -> None:
        self._files = RoundFiles(run, "candidates", "tasks")
        self.rounds, self.tasks_path = self._files.rounds, self._files.paths["tasks"]
        self.candidates = [(line["round"], Candidate.of_record(line)) for line in self._files.read("candidates")]
        """Each with its round."""
        if not self.rounds:
            for seed in seeds:
                self._write_task(seed, before=True)

    @property
    def kept(self) -> list[Candidate]:
        """Those that are among the tasks."""
        return [candidate for _, candidate in self.candidates if candidate.reason is None]

    def add(self, candidates: Sequence[Candidate], numbers: Mapping[str, Any]) -> None:
        """Write a round; `numbers` is what else is to be known of it."""
        for candidate in candidates:
            self._files.write("candidates", candidate.record())
            self.candidates.append((len(self.rounds) + 1, candidate))
            if candidate.reason is None:
                self._write_task(candidate.task)
        self._files.end_round(numbers)

    def close(self) -> None:
        """Finish the files."""
        self._files.close()

    def _write_task(self, task: Task, *, before: bool = False) -> None:
        for record in task_records(task):
            self._files.write("tasks", {**record, "is_classification": task.is_classification}, before=before)


def _unbroken(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records up to the first that is not the next one."""
    found: list[dict[str, Any]] = []
    for record in records:
        if record.get("step") != len(found) + 1:
            break
        found.append(record)
    return found


def _round_of(line: str) -> int:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return int(json.loads(line)["round"])
    return -1
