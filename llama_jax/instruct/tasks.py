"""Tasks: an instruction with instances of input and output; and the seeds that everything begins with."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.opening import read_records
from llama_jax.data.sources.record_text import Record, good_text, parsed_json

OWN_SEEDS = {"english": "seed_tasks.jsonl", "chinese": "seed_tasks_chinese.jsonl"}


@dataclass(frozen=True)
class Instance:
    """What is given and what is to come out."""

    input: str
    """Empty where the instruction says everything."""
    output: str


@dataclass(frozen=True)
class Task:
    """An instruction with examples of it."""

    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool = False


def read_seeds(source: str) -> list[Task]:
    """The seed tasks that `--seed_tasks` names: `english`, `chinese`, or a file.

    Raises:
        UserError: there is no such file, or a record is not a task.
    """
    if source in OWN_SEEDS:
        content = resources.files("llama_jax.instruct").joinpath(OWN_SEEDS[source]).read_bytes()
        lines = enumerate(content.splitlines(), 1)
        return [_task(Record(f"{OWN_SEEDS[source]}:{n}", parsed_json(line, f"{source}:{n}"))) for n, line in lines]
    bad = BadRecords(source, "fail", 0.0, settings=None)
    try:
        seeds = [_task(record) for record in read_records(source, bad, "--seed_tasks")]
    except BadRecordError as error:
        raise UserError(f"--seed_tasks {error}") from None
    if not seeds:
        raise UserError(f"--seed_tasks {source}: holds no task")
    return seeds


def _task(record: Record) -> Task:
    place, values = record
    instruction = good_text(values.get("instruction"), "instruction", place)
    given = values.get("instances", [values])
    if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
        raise BadRecordError("wrong_type", place, "field 'instances' must be a list of objects with input and output")
    is_classification = values.get("is_classification", False)
    if not isinstance(is_classification, bool):
        raise BadRecordError("wrong_type", place, "field 'is_classification' must be true or false")
    return Task(instruction.strip(), tuple(_instance(each, place) for each in given), is_classification)


def _instance(values: dict[str, Any], place: str) -> Instance:
    given = values.get("input") or ""
    if not isinstance(given, str):
        raise BadRecordError("wrong_type", place, "field 'input' must be text")
    return Instance(given.strip(), good_text(values.get("output"), "output", place).strip())


def task_records(task: Task) -> Sequence[dict[str, Any]]:
    """The task as records of Alpaca's format, one for each instance."""
    return [
        {"instruction": task.instruction, "input": instance.input, "output": instance.output}
        for instance in task.instances
    ]
