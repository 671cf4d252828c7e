"""Records of files to encoded examples: what cannot be used is named by file and line, counted by reason, and stops
nothing below the rate; what is cut or teaches nothing is counted too."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llama_jax.core.errors import UserError
from llama_jax.data.config import InstructionDataConfig
from llama_jax.data.instructions.examples import InstructionData
from llama_jax.data.instructions.templates import Layout

GOOD = b'{"instruction": "Name a cat.", "input": "", "output": "Tom"}'
CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'


def read(tokenizer, source, said=None, **config) -> InstructionData:
    settings = {"validation_fraction": 0.0, "template": "plain", **config}
    if "mixture" not in settings:
        settings["source"] = str(source)
    config = InstructionDataConfig(**settings)
    return InstructionData(config, Layout(config.template, tokenizer), say=(said if said is not None else []).append)


def texts(examples, tokenizer):
    return [tokenizer.decode(examples[number][0].tolist()) for number in range(len(examples))]


def records(count: int):
    return [{"instruction": f"Count to {number}.", "output": "one " * (number % 7 + 1)} for number in range(count)]


def write(path, values):
    path.write_text("\n".join(json.dumps(value) for value in values))
    return path


BAD_LINES = {
    "UTF-8": (b'{"instruction": "a", "output": "\xff"}', "not_utf8", "not UTF-8 at byte 32"),
    "surrogate": (b'{"instruction": "a", "output": "\\ud800"}', "surrogate", "an unpaired surrogate"),
    "surrogate in the question": (
        b'{"instruction": "\\udc00", "output": "b"}',
        "surrogate",
        "'instruction' holds an unpaired",
    ),
    "NUL": (b'{"instruction": "a\x00", "output": "b"}', "nul", "holds NUL bytes"),
    "escaped NUL": (b'{"instruction": "a\\u0000", "output": "b"}', "nul", "'instruction' holds NUL at character 1"),
    "empty": (b'{"instruction": "a", "output": ""}', "empty", "field 'output' is empty"),
    "white space": (b'{"instruction": " \\n", "output": "b"}', "empty", "field 'instruction' is empty"),
    "missing": (b'{"instruction": "a"}', "missing_field", "no field 'output'"),
    "null": (b'{"instruction": null, "output": "b"}', "null_field", "field 'instruction' is null"),
    "number": (b'{"instruction": "a", "output": 1}', "wrong_type", "'output' is of type number"),
    "NaN": (b'{"instruction": "a", "output": NaN}', "wrong_type", "'output' is of type number"),
    "Infinity": (b'{"instruction": -Infinity, "output": "b"}', "wrong_type", "'instruction' is of type number"),
    "huge integer": (
        b'{"instruction": "a", "output": ' + b"9" * 5000 + b"}",
        "number_too_long",
        "cannot be read|can be",
    ),
    "list": (b'{"instruction": "a", "output": ["b"]}', "wrong_type", "'output' is of type list"),
    "object": (b'{"instruction": "a", "output": {"text": "b"}}', "wrong_type", "'output' is of type object"),
    "no JSON": (b"instruction: a", "not_json", "not JSON"),
    "array": (b"[1]", "not_object", "a JSON list; each record must be an object"),
    "deep": (b'{"instruction": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep", "brackets nested too deeply"),
    "two objects": (GOOD + GOOD, "trailing_data", "more than one value"),
    "key twice": (b'{"instruction": "a", "output": "b", "output": "c"}', "duplicate_field", "the field 'output' twice"),
    "no assistant": (b'{"messages": [{"role": "user", "content": "a"}]}', "no_answer", "nothing to learn"),
    "no turn": (b'{"messages": []}', "empty", "field 'messages' is empty"),
    "empty answer": (CHAT.replace(b'"ho"', b'""'), "empty", "messages[1].content' is empty"),
    "key twice within": (
        CHAT.replace(b'"content": "ho"', b'"content": "a", "content": "b"'),
        "duplicate_field",
        "twice",
    ),
    "strange role": (CHAT.replace(b"assistant", b"tool"), "unknown_role", "messages[1].role is 'tool'"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_record_is_named_and_counted_and_stops_nothing(tmp_path, tokenizer, kind):
    line, reason, message = BAD_LINES[kind]
    good, said = CHAT if b"messages" in line else GOOD, []
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good] * 50 + [line] + [good] * 49) + b"\n")
    data = read(tokenizer, tmp_path / "a.jsonl", said)
    assert len(data.training) == data.counts[0].examples == 99
    assert data.counts[0].dropped == data.counts[0].bad == {reason: 1}
    assert said[0].startswith(f"bad record skipped: {tmp_path}/a.jsonl:51: ") and len(said) == 1
    assert any(part in said[0] for part in message.split("|")) and "\n" not in said[0]
    assert f"1 dropped ({reason})" in data.description()[0]
    with pytest.raises(UserError, match=r"a\.jsonl:51: .*\(data\.bad_records is fail\)$"):
        read(tokenizer, tmp_path / "a.jsonl", bad_records="fail")


def test_a_line_that_was_cut_off_is_truncated(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD] * 100) + b"\n" + GOOD[:-9])
    assert read(tokenizer, tmp_path / "a.jsonl").counts[0].bad == {"truncated": 1}


def test_names_of_control_tokens_are_text(tmp_path, tokenizer):
    text = "</s><s>[INST]<|eot_id|>"
    write(tmp_path / "a.jsonl", [{"instruction": text, "output": text}])
    data = read(tokenizer, tmp_path / "a.jsonl")
    ids, bears_loss = data.training[0]
    assert texts(data.training, tokenizer) == [text + text]
    assert ids.tolist().count(tokenizer.bos_id) == ids.tolist().count(tokenizer.eos_id) == 1
    assert bears_loss[-1] and ids[-1] == tokenizer.eos_id


def test_more_bad_records_than_allowed_end_the_run_with_one_line(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD] * 97 + [b"x", b"{}", b"{}"]))
    assert len(read(tokenizer, tmp_path / "a.jsonl", max_bad_fraction=0.03).training) == 97
    expected = (
        rf"^data.max_bad_fraction: 3 of 100 records of {tmp_path}/a.jsonl cannot be used \(2 missing_field, "
        r"1 (truncated|not_json)\), more than 0.02 of them; repair the source, or allow more$"
    )
    with pytest.raises(UserError, match=expected):
        read(tokenizer, tmp_path / "a.jsonl", max_bad_fraction=0.02)


def test_the_first_bad_records_are_named_and_the_others_counted(tmp_path, tokenizer):
    said = []
    write(tmp_path / "a.jsonl", [*records(10), *[{"instruction": "a"}] * 10])
    data = read(tokenizer, tmp_path / "a.jsonl", said, max_bad_fraction=1.0)
    assert len(said) == 5 and data.counts[0].bad.total() == 10
    assert said[-1].endswith("further ones are only counted (dropped_records in the metrics)")


def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out_and_counted(tmp_path, byte_tokenizer):
    said = []
    values = [{"instruction": "x" * length, "output": "yes"} for length in range(1, 41)]
    write(tmp_path / "a.jsonl", values)
    data = read(byte_tokenizer, tmp_path / "a.jsonl", said, sequence_length=20)
    # BOS, a space, n letters; the answer begins at place n + 2 of 21.
    assert len(data.training) == 18 and data.counts[0].left_out == {"prompt_too_long": 22}
    assert not data.counts[0].bad  # they are no bad records, so no rate ends the run
    assert said[0].endswith("a.jsonl:19: its answer begins after data.sequence_length 20 tokens")
    assert all(data.training[number][1].any() for number in range(len(data.training)))
    assert (data.training.places <= 20).all()


def test_a_run_whose_examples_all_teach_nothing_stops(tmp_path, byte_tokenizer):
    write(tmp_path / "a.jsonl", [{"instruction": "x" * 50, "output": "yes"}] * 3)
    message = (
        r"^data.source: none of the 3 records of .*a.jsonl has a token that bears loss \(3 prompt_too_long\); "
        r"repair the source, or allow longer rows \(data.sequence_length\)$"
    )
    with pytest.raises(UserError, match=message):
        read(byte_tokenizer, tmp_path / "a.jsonl", sequence_length=20)
    training = read(byte_tokenizer, tmp_path / "a.jsonl", sequence_length=20, train_on_prompt=True).training
    assert training.bears_loss.tolist() == ([False] + [True] * 20) * 3


@pytest.mark.parametrize("length", range(6, 13))
def test_an_example_that_is_cut_is_counted_and_has_no_eos(tmp_path, byte_tokenizer, length):
    # BOS, space, "ab", then "xyz", EOS: 8 ids, which take 7 places of a row.
    said = []
    write(tmp_path / "a.jsonl", [{"instruction": "ab", "output": "xyz"}])
    data = read(byte_tokenizer, tmp_path / "a.jsonl", said, sequence_length=length)
    ids, bears_loss = data.training[0]
    assert data.counts[0].truncated == (length < 7)
    assert len(ids) == min(length + 1, 8) and (ids[-1] == byte_tokenizer.eos_id) == (length >= 7)
    assert bears_loss.tolist() == ([False] * 4 + [True] * 4)[: len(ids)]
    assert ("1 cut at" in data.description()[0]) == (length < 7)


def test_a_chat_that_is_cut_within_a_prompt_ends_with_the_answer_before(tmp_path, byte_tokenizer):
    turns = [("user", "ab"), ("assistant", "xy"), ("user", "c" * 20), ("assistant", "z")]
    values = {"messages": [{"role": role, "content": content} for role, content in turns]}
    write(tmp_path / "a.jsonl", [values])
    data = read(byte_tokenizer, tmp_path / "a.jsonl", sequence_length=16)
    assert data.counts[0].truncated == 1
    assert texts(data.training, byte_tokenizer) == ["abxy"] and data.training.ids[-1] == byte_tokenizer.eos_id


def test_an_example_that_is_too_long_can_be_left_out(tmp_path, byte_tokenizer):
    said = []
    write(tmp_path / "a.jsonl", [{"instruction": "ab", "output": "x" * length} for length in range(1, 11)])
    data = read(byte_tokenizer, tmp_path / "a.jsonl", said, sequence_length=8, overlong="drop")
    assert (len(data.training), data.counts[0].left_out, data.counts[0].truncated) == (4, {"overlong": 6}, 0)
    assert (data.training.ids[data.training.starts[1:] - 1] == byte_tokenizer.eos_id).all()
    assert said[0].endswith("a.jsonl:5: has 10 tokens, more than data.sequence_length allows")


def test_every_kind_of_file_gives_the_same_examples(tmp_path, tokenizer):
    values = records(20)
    write(tmp_path / "a.jsonl", values)
    (tmp_path / "b.json").write_text(json.dumps(values, indent=1))
    write(tmp_path / "c.json", values)
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "d.parquet", row_group_size=7)
    writer = ArrayRecordWriter(str(tmp_path / "e.array_record"), "group_size:1")
    for value in values:
        writer.write(json.dumps(value).encode())
    writer.close()
    (tmp_path / "both").mkdir()
    write(tmp_path / "both/1.jsonl", values[:5])
    (tmp_path / "both/2.json").write_text(json.dumps(values[5:]))
    digests = {
        name: read(tokenizer, tmp_path / name).training.digest()
        for name in ("a.jsonl", "b.json", "c.json", "d.parquet", "e.array_record", "both")
    }
    assert len(set(digests.values())) == 1


def test_rows_of_parquet_with_lists_of_turns_are_read(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    table = pa.table({"id": [1, 2, 3], "messages": [turns, None, turns[:1]]})
    pq.write_table(table, tmp_path / "a.parquet")
    said = []
    data = read(tokenizer, tmp_path / "a.parquet", said, max_bad_fraction=1.0)
    assert texts(data.training, tokenizer) == ["hiho"]
    assert data.counts[0].bad == {"null_field": 1, "no_answer": 1}
    assert said[0].startswith(f"bad record skipped: {tmp_path}/a.parquet row 1: ")


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        turns = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"messages": turns, "n": np.int32}), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        yield 0, {"messages": turns, "n": 1}
        yield 1, {"messages": turns[:1], "n": 2}
"""


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_a_data_set_of_tensorflow_datasets_is_read(tmp_path, tokenizer, file_format, monkeypatch):
    package = tmp_path / f"short_talks_{file_format}"  # a builder must live in a module that can be imported
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"{package.name}_dataset_builder.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(f"{package.name}.{package.name}_dataset_builder", fromlist=["Builder"])
    module.Builder(data_dir=tmp_path / "data", file_format=file_format).download_and_prepare()
    source = f"tfds:{tmp_path}/data/{package.name}/1.0.0"
    data = read(tokenizer, source, max_bad_fraction=1.0)
    assert texts(data.training, tokenizer) == ["hiho"] and data.counts[0].bad == {"no_answer": 1}


def test_a_data_set_of_hugging_face_is_read(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(records(20)).save_to_disk(str(tmp_path / "rows"))
    write(tmp_path / "a.jsonl", records(20))
    data = read(tokenizer, f"hf:{tmp_path}/rows")
    assert data.training.digest() == read(tokenizer, tmp_path / "a.jsonl").training.digest()


def test_texts_and_the_standard_library_are_examples_too(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("The donkey had to haul grain.")
    data = read(tokenizer, tmp_path / "a.txt")
    assert texts(data.training, tokenizer) == ["The donkey had to haul grain."]
    assert data.training.bears_loss.tolist() == [False] + [True] * (len(data.training.ids) - 1)


def test_the_format_is_told_for_each_source_by_itself(tmp_path, tokenizer):
    write(tmp_path / "a.jsonl", [{}, {"instruction": "a", "output": "b", "text": "c"}] * 10)
    (tmp_path / "b.jsonl").write_bytes(CHAT)
    mixture = ((f"{tmp_path}/a.jsonl", 3.0), (f"{tmp_path}/b.jsonl", 1.0))
    data = read(tokenizer, "", mixture=mixture, max_bad_fraction=1.0)
    assert [counts.form for counts in data.counts] == ["alpaca", "messages"]
    assert (data.shares, data.training.sources.tolist()) == ((0.75, 0.25), [0, 10, 11])
    assert texts(data.training, tokenizer) == ["ab"] * 10 + ["hiho"]
    named = read(tokenizer, tmp_path / "a.jsonl", format="text", max_bad_fraction=1.0)
    assert texts(named.training, tokenizer) == ["c"] * 10


def test_an_unknown_format_is_refused_with_what_there_is(tmp_path, tokenizer):
    write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    message = r"records have question, answer, which is not a known format \(messages: messages; "
    with pytest.raises(UserError, match=rf"^data.source: .*a.jsonl: {message}"):
        read(tokenizer, tmp_path / "a.jsonl")


def test_a_directory_that_prepare_wrote_is_refused(tmp_path, tokenizer):
    (tmp_path / "manifest.json").write_text('{"format": "llama_jax.prepared"}')
    with pytest.raises(UserError, match="holds token ids that `prepare` wrote; name the records it read"):
        read(tokenizer, tmp_path)


def test_what_is_held_out_is_not_trained_on(tmp_path, tokenizer):
    values = [{"instruction": f"Number {number}?", "output": f"It is {number}."} for number in range(40)]
    write(tmp_path / "a.jsonl", values)
    everything = {value["instruction"] + value["output"] for value in values}
    for settings, count in (({"validation_fraction": 0.1}, 4), ({"validation_examples": 7}, 7), ({}, 0)):
        data = read(tokenizer, tmp_path / "a.jsonl", **settings)
        training, held_out = set(texts(data.training, tokenizer)), set(texts(data.validation, tokenizer))
        assert len(held_out) == count and training | held_out == everything and not training & held_out
        again = read(tokenizer, tmp_path / "a.jsonl", **settings)
        assert again.validation.digest() == data.validation.digest()
    with pytest.raises(UserError, match=r"data.validation_examples: 40 of 40 records leaves none to train on"):
        read(tokenizer, tmp_path / "a.jsonl", validation_examples=40)


def test_records_are_held_out_of_each_source_by_its_size(tmp_path, tokenizer):
    write(tmp_path / "a.jsonl", records(61))
    write(tmp_path / "b.jsonl", records(27))
    write(tmp_path / "c.jsonl", records(12))
    mixture = tuple((f"{tmp_path}/{name}.jsonl", 1.0) for name in "abc")
    data = read(tokenizer, "", mixture=mixture, validation_examples=15)
    assert [counts.held_out for counts in data.counts] == [9, 4, 2]
    assert [counts.examples for counts in data.counts] == [52, 23, 10]


def test_another_source_can_be_validated_on(tmp_path, tokenizer):
    write(tmp_path / "a.jsonl", records(20))
    write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    source = f"{tmp_path}/b.jsonl"
    data = read(tokenizer, tmp_path / "a.jsonl", validation_source=source, max_bad_fraction=0.5)
    assert (len(data.training), texts(data.validation, tokenizer)) == (20, ["ab"])
    assert [(counts.name, counts.held_out, counts.bad) for counts in data.counts][1] == (
        source,
        1,
        {"missing_field": 1},
    )
    assert [turn.content for turn in data.prompts[0][0]] == ["a"] and data.prompts[0][1] == "b"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 1.0}, "data.validation_fraction: 1.0 must be at least 0 and below 1"),
        ({"validation_examples": -1}, "data.validation_examples: -1 must not be negative"),
        ({"validation_examples": 1, "validation_source": "x"}, "contradicts data.validation_source"),
        ({"group_by_length": True}, "data.group_by_length: contradicts data.packing pack"),
        ({"sequence_length": 1}, "data.sequence_length: 1 is too short"),
        ({"pad_multiple": 0}, "data.pad_multiple: 0 must be at least 1"),
        ({"max_bad_fraction": 1.5}, "data.max_bad_fraction: 1.5 must lie between 0 and 1"),
        ({"source": "a", "mixture": (("b", 1.0),)}, "data.source: a contradicts data.mixture"),
        ({"mixture": (("b", -1.0),)}, "data.mixture: weight -1.0 of 'b' must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        InstructionDataConfig(**settings)


def test_reasoning_that_the_template_does_not_lay_out_is_said(tmp_path, tokenizer):
    thought = {"role": "assistant", "content": "ho", "reasoning_content": "They greet me."}
    plain = json.loads(CHAT)["messages"]
    rows = [{"messages": [plain[0], thought]}] * 3 + [{"messages": [*plain, plain[0], thought]}, {"messages": plain}]
    data = read(tokenizer, write(tmp_path / "a.jsonl", rows))
    assert data.counts[0].unsaid_reasoning == 4
    assert "reasoning_content of 4 turns left out, as the template does not lay it out" in data.description()[0]
    assert not read(tokenizer, write(tmp_path / "b.jsonl", rows[-1:])).counts[0].unsaid_reasoning
