"""Small files that declare or hold very much are refused, or read without asking for it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llama_jax.core.errors import UserError
from llama_jax.data.sources import file_bytes, parquet_files, record_text
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.opening import open_records, open_source

LONG = "a long text, again and again " * 30_000  # 870 KB
ROWS = 200
TURNS = [{"role": "user", "content": "a" * 1000}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def file(tmp_path):
    """174 MB of text in one dictionary of 870 KB, and another in lists of objects."""
    table = pa.table({"text": [LONG] * ROWS, "messages": [TURNS] * ROWS, "number": range(ROWS)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    return tmp_path / "a.parquet"


def test_a_text_that_many_rows_share_is_held_once(file) -> None:
    documents, records = open_source(str(file)), open_records(str(file))
    before = pa.total_allocated_bytes()
    assert (len(documents), documents[3], documents[ROWS - 1]) == (ROWS, LONG, LONG)
    assert records[7].values == {"text": LONG, "messages": TURNS, "number": 7}
    assert pa.total_allocated_bytes() - before < 4 * len(LONG)


KINDS = {
    "strings": pa.string(),
    "large strings": pa.large_string(),
    "views": pa.string_view(),
    "bytes": pa.binary(),
    "a dictionary": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["dictionary", "plain"])
def test_every_kind_of_text_is_read_as_it_was(tmp_path, kind, stored) -> None:
    texts = pa.array(["a", "é", None, "a"])
    column = texts.dictionary_encode() if kind == "a dictionary" else texts.cast(KINDS[kind])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", use_dictionary=stored == "dictionary")
    documents, records = (open_(str(tmp_path / "a.parquet")) for open_ in (open_source, open_records))
    assert [documents[0], documents[1], documents[3]] == ["a", "é", "a"]
    assert [records[row].values["text"] for row in range(4)] == ["a", "é", None, "a"]


def test_nested_values_are_read_as_they_were(tmp_path) -> None:
    rows = {
        "map": pa.array([[("a", "b")], [], None], pa.map_(pa.string(), pa.string())),
        "list": [["a", None], [], None],
        "object": [{"x": "a", "y": [1]}, {"x": None, "y": None}, None],
        "number": pa.array([1.5, None, 2.0], pa.float32()),
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    records = open_records(str(tmp_path / "a.parquet"))
    first = {"map": [["a", "b"]], "list": ["a", None], "object": {"x": "a", "y": [1]}, "number": 1.5}
    assert records[0].values == first
    assert records[2].values == {"map": None, "list": None, "object": None, "number": 2.0}


def test_a_row_that_has_one_text_very_often_is_too_long(tmp_path, monkeypatch) -> None:
    rows = [[TURNS[0]] * 3, [TURNS[0]] * 500, None]
    maps = pa.array([[("k", "v")], [("k", "v" * 900)] * 2, []], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"messages": rows, "map": maps}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_files, "MAX_RECORD_BYTES", 100_000)
    monkeypatch.setattr(parquet_files, "_CACHE_BYTES", 200_000)
    records = open_records(str(tmp_path / "a.parquet"))
    assert records[0].values["messages"] == [TURNS[0]] * 3
    with pytest.raises(BadRecordError, match=r"a.parquet row 1: 50\d\d\d\d bytes long; a record may have"):
        records[1]


def test_a_row_group_that_unpacks_very_much_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_files, "_CACHE_BYTES", 2**20)
    path, key = tmp_path / "a.parquet", pa.binary(50_000)
    tables = {
        "a long text, compressed": pa.table({"text": [LONG] * 2}),
        "very many numbers": pa.table({"text": pa.array([None] * 300_000, pa.string())}),
        "bytes of one length": pa.table({"text": ["a"] * 100, "key": pa.array([b"k" * 50_000] * 100, key)}),
    }
    for name, table in tables.items():
        pq.write_table(table, path, compression="zstd", use_dictionary=name == "bytes of one length")
        with pytest.raises(UserError, match=r"a.parquet: row group 0 unpacks [\d,]+ bytes from [\d,]+; write"):
            open_records(str(path))
    assert len(open_source(str(path))) == 100  # the other column is not read
    pq.write_table(tables["a long text, compressed"], path, compression="none", use_dictionary=False)
    assert open_source(str(path))[1] == LONG  # of a large file it may be much


def test_a_file_of_more_rows_than_it_can_hold_is_refused(file, monkeypatch) -> None:
    monkeypatch.setattr(file_bytes, "_MOST_RECORDS", 0)
    assert len(open_source(str(file))) == ROWS
    pq.write_table(pa.table({"text": ["a"] * 100_000}), file)
    with pytest.raises(UserError, match=r"a.parquet: declares 100,000 records in [\d,]+ bytes; write it anew"):
        open_source(str(file))
    other = str(file.with_name("a.array_record"))
    writer = ArrayRecordWriter(other, "group_size:1")
    for _ in range(10):
        writer.write(b"a")
    writer.close()
    assert len(open_source(other)) == 10
    monkeypatch.setattr(file_bytes, "_MOST_RECORDS", -file.with_name("a.array_record").stat().st_size + 9)
    with pytest.raises(UserError, match=r"a.array_record: declares 10 records in [\d,]+ bytes; write it anew"):
        open_source(other)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_text_of_any_file_may_have_so_many_bytes(tmp_path, monkeypatch, name) -> None:
    texts = ["é" * 50, "é" * 51, "é"]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        path.write_text("\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]")
    monkeypatch.setattr(record_text, "MAX_RECORD_BYTES", 100)
    documents = open_source(str(path))
    assert (documents[0], documents[2]) == (texts[0], texts[2])
    with pytest.raises(BadRecordError, match="102 bytes long; a record may have 100") as raised:
        documents[1]
    assert raised.value.reason == "too_long"
