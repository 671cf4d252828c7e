"""Records of evaluations: the same from every kind of file, and a broken one is named with its place."""

import json
import re
import subprocess
import sys

import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError, read_many, read_one_by_one
from llama_jax.data.sources.opening import open_source, read_records
from llama_jax.data.sources.record_text import Record

RECORDS = [{"question": "è vero?", "choices": ["sì", "no"], "answer": 0}, {"question": "2 > 1?", "n": [1.5, None]}]


def none() -> BadRecords:
    """None may be bad."""
    return BadRecords("records", "fail", 0.0, settings="--")


def test_lines_and_an_array_hold_the_same_records(tmp_path) -> None:
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text("\ufeff" + json.dumps(RECORDS[0]) + "\n\n" + json.dumps(RECORDS[1], ensure_ascii=False))
    array.write_text(json.dumps(RECORDS, indent=2))
    assert read_records(str(lines), none()) == [Record(f"{lines}:1", RECORDS[0]), Record(f"{lines}:3", RECORDS[1])]
    places = [f"{array}[0]", f"{array}[1]"]
    assert read_records(str(array), none()) == [Record(*both) for both in zip(places, RECORDS, strict=True)]


def test_records_that_are_read_together_are_those_that_are_read_alone(tmp_path) -> None:
    """Broken ones, long ones and blank lines among them, and the last without an end."""
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in ("a", "é" * 2**20, "b" * 2**22, "c", "d" * 2**23, "e", "f" * 2**20)]
    path.write_text("\n".join([*lines[:4], "", "{", *lines[4:], json.dumps({"text": "end"})[:-1]]))
    documents = open_source(str(path), "text")
    alone = read_one_by_one(documents, range(9))
    assert [number for number, each in enumerate(alone) if isinstance(each, BadRecordError)] == [4, 5, 8]
    for numbers in (range(9), [8, 0, 1, 3, 4, 5, 5, 6], [4], []):
        together = read_many(documents, numbers)
        assert [str(each) for each in together] == [str(alone[number]) for number in numbers]


MISTAKES = {
    "not JSON": ("a.jsonl", b'{"a": 1}\n{"a": }\n', "a.jsonl:2: not JSON: Expecting value, column 7"),
    "no object": ("a.jsonl", b"[1]\n", "a.jsonl:1: a JSON list; each record must be an object"),
    "not UTF-8": ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl:1: not UTF-8 at byte 7"),
    "an unpaired surrogate": ("a.jsonl", b'{"a": ["\\ud800"]}\n', "a.jsonl:1: holds an unpaired surrogate"),
    "nested too deep": ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: not JSON that can be read"),
    "a number without end": ("a.jsonl", b"1" * 10_000 + b"\n", "a.jsonl:1: not JSON that can be read"),
    "a line without end": ("a.jsonl", b'{"a": "' + b"x" * 2**22, "a.jsonl:1: the file ends within the record"),
    "no array": ("a.json", b'"a"', "--data: a.json: not a JSON array; give an array of objects"),
    "a broken array": (
        "a.json",
        b'[{"a": 1},\n{"a"}]',
        "a.json[1]: not JSON: Expecting ':' delimiter",
    ),
    "something else in an array": ("a.json", b'[{"a": 1}, "b"]', "a.json[1]: a JSON string"),
    "a record beyond all bounds": (
        "a.jsonl",
        b'{"a": "' + b"x" * 2**23 + b'"}',
        "a.jsonl:1: 8388617 bytes long; a record may have 8388608",
    ),
    "nothing": ("a.jsonl", b"\n", "--data: no text in a.jsonl (1 files)"),
    "another kind": ("a.csv", b"a,b\n", "--data: a.csv has an unsupported extension"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_record_is_named_with_its_place(mistake, tmp_path, monkeypatch) -> None:
    name, content, said = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(said)}") as raised:
        read_records(name, none())
    assert "\n" not in str(raised.value)


BUILDER = """
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text, label = tfds.features.Text(), tfds.features.ClassLabel(names=["A", "B"])
        choices = tfds.features.Sequence({"text": text, "label": label})
        features = tfds.features.FeaturesDict({"question": text, "choices": choices, "answerKey": label})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"question": "hot?", "choices": {"text": ["ice", "é"], "label": ["A", "B"]}, "answerKey": "B"}
"""


def test_a_prepared_data_set_is_read_by_its_name(tmp_path) -> None:
    package = tmp_path / "small_questions"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "small_questions_dataset_builder.py").write_text(BUILDER)
    prepare = (
        "from small_questions.small_questions_dataset_builder import Builder; "
        f"Builder(data_dir={str(tmp_path / 'tfds')!r}, file_format='array_record').download_and_prepare()"
    )
    subprocess.run([sys.executable, "-c", prepare], cwd=tmp_path, check=True, capture_output=True)
    program = (
        "from llama_jax.core.errors import UserError; from llama_jax.data.sources.opening import read_records\n"
        "from llama_jax.data.sources.bad_records import BadRecords; none = BadRecords('records', 'fail', 0.0)\n"
        "print(read_records('tfds:small_questions:test', none)[0])\n"
        "for wrong in ('tfds:small_questions:train', 'tfds:nowhere:test', 'tfds:small_questions'):\n"
        "    try: read_records(wrong, none)\n"
        "    except UserError as error: print(error)\n"
    )
    # In a process of its own: the library reads its directory from the environment once.
    environment = {"TFDS_DATA_DIR": str(tmp_path / "tfds"), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    record, *errors = printed.stdout.splitlines()
    values = {"answerKey": 1, "choices": {"label": [0, 1], "text": ["ice", "é"]}, "question": "hot?"}
    assert record == f"Record(place='tfds:small_questions/1.0.0:test example 0', values={values})"
    assert errors[0].startswith("--data: tfds:small_questions:train: Unknown split 'train'")
    assert errors[1].startswith("--data: tfds:nowhere:test: Dataset nowhere not found")
    assert errors[2] == "--data: tfds:small_questions: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT"
