"""Every kind of record that cannot be used: which reason it counts under, where it is said to stand, and that the
records around it can still be read."""

import json
import pickle
import random
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, Source
from llama_jax.data.rows.packing import Epochs
from llama_jax.data.rows.progress import progress
from llama_jax.data.sources import record_files
from llama_jax.data.sources.documents import BadRecordError, Documents
from llama_jax.data.sources.opening import open_source

GOOD = b'{"text": "good"}'
HALF_A_CHARACTER = '{"text": "é"}'.encode()[:11]


def bad(documents: Documents, index: int) -> BadRecordError:
    with pytest.raises(BadRecordError) as caught:
        documents[index]
    assert "\n" not in str(caught.value)
    return caught.value


BAD_LINES = {
    "UTF-8": (b'{"text": "\xff"}', "not_utf8", "not UTF-8 at byte 10 of the record"),
    "an overlong form": (b'{"text": "\xc0\xaf"}', "not_utf8", "not UTF-8 at byte 10"),
    "Latin-1": ('{"text": "café"}'.encode("latin-1"), "not_utf8", "not UTF-8 at byte 13"),
    "a surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "not_utf8", "not UTF-8 at byte 10"),
    "high surrogate": (b'{"text": "ab\\ud800"}', "surrogate", "holds an unpaired surrogate at character 2"),
    "low surrogate": (b'{"text": "\\udc00"}', "surrogate", "holds an unpaired surrogate at character 0"),
    "NUL": (b'{"text": "a\x00b"}', "nul", "holds NUL bytes"),
    "a line of NUL": (b"\0" * 4096, "nul", "holds NUL bytes, like a file that was not written to its end"),
    "escaped NUL": (b'{"text": "a\\u0000b"}', "nul", "field 'text' holds NUL at character 1"),
    "control character": (b'{"text": "a\x01b"}', "not_json", "not JSON: Invalid control character"),
    "no end": (b'{"text": "x"', "not_json", "not JSON: Expecting ',' delimiter, column 13"),
    "no JSON": (b"some words", "not_json", "not JSON: Expecting value, column 1"),
    "single quotes": (b"{'text': 'x'}", "not_json", "not JSON: Expecting property name"),
    "trailing comma": (b'{"text": "x",}', "not_json", "not JSON: "),
    "bad escape": (b'{"text": "\\x"}', "not_json", "not JSON: Invalid \\escape"),
    "garbage after it": (GOOD + b" x", "trailing_data", "not JSON: more than one value, from column 18"),
    "two objects": (GOOD + GOOD, "trailing_data", "not JSON: more than one value"),
    "two objects with a comma": (GOOD + b"," + GOOD, "trailing_data", "not JSON: more than one value"),
    "old line ends": (GOOD + b"\r" + GOOD, "trailing_data", "not JSON: more than one value"),
    "nesting": (b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep", "brackets nested too deeply"),
    "nesting without end": (b"[" * 100_000, "too_deep", "brackets nested too deeply"),
    "nested objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep", "brackets nested too deeply"),
    "long number": (b'{"text": ' + b"9" * 5_000 + b"}", "number_too_long", "not JSON that can be read: Exceeds the"),
    "array": (b'["text"]', "not_object", "a JSON list; each record must be an object with the field 'text'"),
    "string": (b'"text"', "not_object", "a JSON string"),
    "number": (b"17", "not_object", "a JSON number"),
    "null": (b"null", "not_object", "a JSON null"),
    "another field": (b'{"texts": "x"}', "missing_field", "it has texts; did you mean 'texts'?"),
    "no field": (b"{}", "missing_field", "no field 'text' (data.text_field); it has no field"),
    "many fields": (
        json.dumps(dict.fromkeys("abcdefghijk")).encode(),
        "missing_field",
        "it has a, b, c, d, e, f, g, h, ...",
    ),
    "null field": (b'{"text": null}', "null_field", "field 'text' is null; it must be a string"),
    "number field": (b'{"text": 1}', "wrong_type", "field 'text' is of type number; it must be a string"),
    "NaN field": (b'{"text": NaN}', "wrong_type", "field 'text' is of type number; it must be a string"),
    "flag field": (b'{"text": true}', "wrong_type", "field 'text' is of type boolean"),
    "list field": (b'{"text": ["x"]}', "wrong_type", "field 'text' is of type list"),
    "object field": (b'{"text": {"text": "x"}}', "wrong_type", "field 'text' is of type object"),
    "empty": (b'{"text": ""}', "empty", "field 'text' is empty; remove the record"),
    "white space": (b'{"text": " \\n\\t\\u2003"}', "empty", "field 'text' is empty"),
    "field twice": (b'{"text": "x", "text": "y"}', "duplicate_field", "has the field 'text' twice"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_told_from_good_ones_and_named(tmp_path, kind):
    line, reason, message = BAD_LINES[kind]
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    documents = open_source(str(file))
    assert (len(documents), documents[0], documents[2]) == (3, "good", "good")
    error = bad(documents, 1)
    assert (error.reason, error.where) == (reason, f"{file}:3")
    assert message in str(error)


@pytest.mark.parametrize(
    "kind", [kind for kind in BAD_LINES if "no end" not in kind and "without end" not in kind and "comma" not in kind]
)
def test_a_bad_element_of_an_array_is_told_from_good_ones(tmp_path, kind):
    element, reason, _ = BAD_LINES[kind]
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b",\n" + element + b" ,\n" + GOOD + b"]\n")
    documents = open_source(str(tmp_path / "a.json"))
    assert (len(documents), documents[0], documents[2]) == (3, "good", "good")
    error = bad(documents, 1)
    assert (error.reason, error.where) == (reason, f"{tmp_path}/a.json[1]")


GOOD_LINES = {
    "CRLF": (GOOD + b"\r", "good"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "good"),
    "another field twice": (b'{"n": 1, "n": 2, "text": "x"}', "x"),
    "the field within another": (b'{"text": "x", "more": {"text": "y"}}', "x"),
    "its name within the text": (b'{"text": "a \\"text\\" b"}', 'a "text" b'),
    "NaN elsewhere": (b'{"n": NaN, "m": -Infinity, "text": "x"}', "x"),
    "large numbers": (b'{"n": 1e999, "m": ' + b"9" * 4_000 + b', "text": "x"}', "x"),
    "surrogate pair": (b'{"text": "\\ud83d\\ude42"}', "🙂"),
    "special tokens": (b'{"text": "<s>[INST] </s><|eot_id|>"}', "<s>[INST] </s><|eot_id|>"),
    "line separators": ('{"text": "a\u2028b\u0085c"}'.encode(), "a\u2028b\u0085c"),
    "white space around": (b" \t" + GOOD + b" \t", "good"),
}


@pytest.mark.parametrize("kind", GOOD_LINES)
def test_what_is_unusual_but_clear_is_read(tmp_path, kind):
    line, text = GOOD_LINES[kind]
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + line + b"\n")
    assert open_source(str(tmp_path / "a.jsonl"))[1] == text


@pytest.mark.parametrize("line", [b'{"text": "go', HALF_A_CHARACTER, b"{"])
def test_a_last_line_that_was_cut_off_is_truncated(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + line)
    error = bad(open_source(str(tmp_path / "a.jsonl")), 1)
    assert error.reason == "truncated"
    assert "a.jsonl:2: the file ends within the record" in str(error)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_record_of_100_mb_is_counted_but_never_read(tmp_path, name, monkeypatch):
    with (tmp_path / name).open("wb") as file:
        file.write((b"[" if name == "a.json" else b"") + GOOD + (b"," if name == "a.json" else b"\n"))
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}' + (b"," if name == "a.json" else b"\n") + GOOD + (b"]" if name == "a.json" else b""))
    documents = open_source(str(tmp_path / name))
    monkeypatch.setattr(record_files, "read_range", lambda *_: pytest.fail("it was read"))
    error = bad(documents, 1)
    assert (error.reason, len(documents)) == ("too_long", 3)
    assert re.search(r"10000001[23] bytes long; a record may have 8388608$", str(error))
    monkeypatch.undo()
    assert (documents[0], documents[2]) == ("good", "good")


BAD_ARRAYS = {
    "an object": (b'{\n "data": []\n}', "starts with a line that is not a JSON object; give an array"),
    "a string": (b'"x"', "not a JSON array"),
    "nothing": (b"", "holds no JSON"),
    "white space": (b" \n", "holds no JSON"),
    "cut between elements": (b'[{"text": "x"},\n', "the array does not end; the file was cut short at byte 16"),
    "cut within a string": (b'[{"text": "x, ]', "the array does not end"),
    "text after it": (b'[{"text": "x"}] [', "something follows the JSON array at byte 16"),
    "gzip": (b"\x1f\x8b\x08\x00", "is compressed by gzip; unpack it"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_file_that_is_no_whole_array_is_refused(tmp_path, kind):
    content, message = BAD_ARRAYS[kind]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"^data.source: .*a\.json: {message}") as error:
        open_source(str(tmp_path / "a.json"))
    assert "\n" not in str(error.value)


def test_elements_that_are_missing_between_commas_are_bad(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b", , " + GOOD + b",]")
    documents = open_source(str(tmp_path / "a.json"))
    assert [len(documents), documents[0], documents[2]] == [4, "good", "good"]
    assert [bad(documents, index).reason for index in (1, 3)] == ["not_json", "not_json"]


@pytest.mark.parametrize("offset", [0, 5, 16_383, 16_391, 3_000_000])
def test_one_piece_of_a_text_is_bad_where_a_byte_is_not_utf8(tmp_path, offset):
    content = bytearray(b"some words\n" * 300_000)
    content[offset] = 0xFF
    (tmp_path / "a.txt").write_bytes(content)
    documents = open_source(str(tmp_path / "a.txt"))
    errors, good = [], 0
    for index in range(len(documents)):
        try:
            good += len(documents[index])
        except BadRecordError as error:
            errors.append(error)
    assert [error.reason for error in errors] == ["not_utf8"]
    assert str(errors[0]).endswith(f"not UTF-8 at byte {offset}")
    assert good >= len(content) - 16_384


def test_nul_in_a_text_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"some\0words")
    error = bad(open_source(str(tmp_path / "a.txt")), 0)
    assert (error.reason, error.message) == ("nul", "holds NUL at byte 4; remove it")


OTHER_FILES = {
    "UTF-16": ("a.txt", "words".encode("utf-16"), "is UTF-16; write it as UTF-8"),
    "UTF-16, other end first": ("a.jsonl", b"\xfe\xff\0{", "is UTF-16; write it as UTF-8"),
    "gzip": ("a.jsonl", b"\x1f\x8b\x08\0", "is compressed by gzip; unpack it"),
    "zstd": ("a.txt", b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it"),
    "zip": ("a.jsonl", b"PK\x03\x04", "is a zip archive; unpack it"),
    "gzip by its name": ("a.jsonl.gz", b"\x1f\x8b\x08\0", "is compressed; unpack it, as documents are read at random"),
    "zstd by its name": ("a.json.zst", b"", "is compressed; unpack it"),
    "parquet": ("a.jsonl", b"PAR1", "is a parquet file; name it .parquet"),
    "empty parquet": ("a.parquet", b"", "cannot be read: Parquet file size is 0 bytes"),
    "no parquet": ("a.parquet", b"text" * 1000, "cannot be read: Parquet magic bytes not found in footer"),
    "empty array_record": ("a.array_record", b"", "cannot be read: ArrayRecord file should be at least 64KB"),
    "no array_record": ("a.array_record", b"text" * 65_536, "cannot be read: "),
}


@pytest.mark.parametrize("below", [False, True], ids=["named", "in a directory"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, kind, below):
    name, content, message = OTHER_FILES[kind]
    (tmp_path / "good.txt").write_text("words")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^data.source: .*{name}:? {message}") as error:
        open_source(str(tmp_path if below else tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt", "b.jsonl"])
def test_an_empty_file_is_passed_over_beside_others(tmp_path, name):
    (tmp_path / "good.txt").write_text("words")
    (tmp_path / name).write_bytes(b"")
    assert len(open_source(str(tmp_path))) == 1


def test_cells_of_parquet_without_text_are_bad(tmp_path):
    column = pa.array([b"good", None, b"", b" \n", b"\xff", b"a\0b", b"good"], pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "binary.parquet", row_group_size=2)
    strings = pa.Array.from_buffers(pa.string(), len(column), column.buffers())  # says UTF-8 and is not
    pq.write_table(pa.table({"text": strings}), tmp_path / "strings.parquet", row_group_size=2)
    for name in ("binary", "strings"):
        documents = open_source(f"{tmp_path}/{name}.parquet")
        assert (len(documents), documents[0], documents[6]) == (7, "good", "good")
        reasons = [bad(documents, index).reason for index in range(1, 6)]
        assert reasons == ["null_field", "empty", "empty", "not_utf8", "nul"]
        assert bad(documents, 4).where == f"{tmp_path}/{name}.parquet row 4"


def test_rows_of_a_damaged_row_group_are_bad_and_the_others_are_read(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(40)]}), file, row_group_size=20, use_dictionary=False)
    start = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    file.write_bytes(content)
    documents = open_source(str(file))
    error = bad(documents, 3)
    assert (error.reason, error.where, documents[20]) == ("damaged", f"{file} row 3", "text 20")
    assert "row group 0 cannot be decoded" in str(error)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("txt", r"no field 'txt' \(data.text_field\); it has text, n, nested; did you mean 'text'"),
        ("n", r"column 'n' \(data.text_field\) is of type int64; columns of strings: text"),
        ("nested", r"column 'nested' \(data.text_field\) is of type struct<text: string>; columns of strings: text"),
        ("nested.text", r"no field 'nested.text' \(data.text_field\); it has text, n, nested"),
    ],
)
def test_a_column_that_is_not_of_strings_is_refused_with_those_that_are(tmp_path, field, message):
    pq.write_table(pa.table({"text": ["a"], "n": [1], "nested": [{"text": "x"}]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"^data.source: .*a.parquet: {message}"):
        open_source(str(tmp_path / "a.parquet"), field)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_parquet_or_array_record_file_that_was_cut_short_is_refused(tmp_path, share):
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(1000)]}), tmp_path / "a.parquet")
    write_records(tmp_path / "a.array_record", [b"text %d" % n for n in range(1000)])
    for name in ("a.parquet", "a.array_record"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=f"^data.source: .*{name}: cannot be read: ") as error:
            open_source(str(tmp_path / name))
        assert "\n" not in str(error.value)


def write_records(file, records):
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


BAD_RECORDS = {
    "empty": (b"", "empty"),
    "white space": (b" \n", "empty"),
    "UTF-8": (b"ab\xff", "not_utf8"),
    "NUL": (b"a\0b", "nul"),
    "an object without the field": (b'{"texts": "x"}', "missing_field"),
    "an empty object": (b"{}", "missing_field"),
    "an object cut short": (b'{"text": "x', "not_json"),
    "tf.train.Example": (b"\n\x15\n\x13\n\x04text\x12\x0b\n\x09\n\x07hello x", "tf_example"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_of_an_array_record_file_is_told_from_good_ones(tmp_path, kind):
    record, reason = BAD_RECORDS[kind]
    file = tmp_path / "a.array_record"
    write_records(file, [b"good", record, GOOD])
    documents = open_source(str(file))
    assert (len(documents), documents[0], documents[2]) == (3, "good", "good")
    error = bad(documents, 1)
    assert (error.reason, error.where) == (reason, f"{file} record 1")


def test_all_kinds_together_lose_no_good_record_and_each_is_counted(tmp_path, byte_tokenizer):
    lines = [*((line, reason) for line, reason, _ in BAD_LINES.values()), (HALF_A_CHARACTER, "truncated")]
    kinds = [*lines, *BAD_RECORDS.values()]
    assert len({*kinds}) >= 40
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(part for line, _ in lines for part in (GOOD, line)))
    write_records(tmp_path / "b.array_record", [part for record, _ in BAD_RECORDS.values() for part in (GOOD, record)])
    reasons = [found for _, reason in kinds for found in (None, reason)]
    mixture, said = Mixture([Source("documents", open_source(str(tmp_path)))]), []
    config = DataConfig(sequence_length=8, streams=1, max_bad_fraction=1.0)
    loader = Loader(mixture, byte_tokenizer, config, 0, batch_size_at=lambda step: 1, say=said.append).start()
    tokens: list[int] = []
    for rows, state in loader:
        tokens += rows["tokens"][0].tolist()
        (told,) = progress(state.streams, mixture).values()
        if told.documents > 2 * len(reasons):
            break
    loader.close()
    order = Epochs(len(reasons), 0)
    read = Counter(reasons[order[place]] for place in range(told.documents))
    good = read.pop(None)
    assert told.dropped == read and read.keys() == {reason for _, reason in kinds}
    # A row may end within the last.
    assert good - tokens.count(byte_tokenizer.encode("good")[-1]) in (0, 1)
    assert said and all(line.startswith("bad record skipped: ") and str(tmp_path) in line for line in said)


def test_a_text_that_starts_with_a_brace_or_a_line_end_is_a_text(tmp_path):
    texts = ["{\\bf bold}", "{ not JSON }", "\n\x05 paragraph", "\nhello", "["]
    write_records(tmp_path / "a.array_record", [text.encode() for text in texts])
    documents = open_source(str(tmp_path / "a.array_record"))
    assert [documents[index] for index in range(len(texts))] == texts


def test_a_damaged_record_is_bad_and_others_are_read(tmp_path):
    file = tmp_path / "a.array_record"
    write_records(file, [b"%d " % n + random.Random(n).randbytes(1000).hex().encode() for n in range(1000)])
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)
    documents = open_source(str(file))
    reasons = []
    for index in range(len(documents)):
        try:
            assert documents[index].startswith(f"{index} ")
        except BadRecordError as error:
            reasons.append(error.reason)
    assert set(reasons) == {"damaged"} and len(reasons) < 10


def test_an_array_record_file_without_records_has_no_text(tmp_path):
    write_records(tmp_path / "a.array_record", [])
    with pytest.raises(UserError, match="no text in"):
        open_source(str(tmp_path / "a.array_record"))


def test_the_error_of_a_bad_record_survives_a_process_border():
    error = pickle.loads(pickle.dumps(BadRecordError("empty", "a.jsonl:3", "is empty")))
    assert (error.reason, error.where, str(error)) == ("empty", "a.jsonl:3", "a.jsonl:3: is empty")
