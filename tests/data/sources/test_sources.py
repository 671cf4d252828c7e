import json
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError, Documents, TextDocuments, hold_out
from llama_jax.data.sources.opening import open_source

KIB16 = 16 * 1024


def texts(documents: Documents) -> list[str]:
    return [documents[index] for index in range(len(documents))]


def opened(path, **fields) -> list[str]:
    return texts(open_source(str(path), **fields))


@pytest.fixture(scope="module")
def pydoc() -> Documents:
    return open_source("pydoc")


def test_pydoc_holds_the_documentation_of_the_library(pydoc):
    everything = texts(pydoc)
    assert sum(map(len, everything)) > 1_000_000
    (module,) = [text for text in everything if text.startswith("textwrap\n\n")]
    assert "TextWrapper.fill(self, text)\n\nfill(text : string) -> string" in module
    assert "class TextWrapper\n\nObject for wrapping/filling text." in module
    assert any(text.startswith('The "for" statement\n') for text in everything)


def test_pydoc_gives_each_document_once_in_one_order_and_imports_none(pydoc):
    everything = texts(pydoc)
    assert len(set(everything)) == len(everything)
    sys.modules.pop("antigravity", None)
    assert texts(open_source("pydoc")) == everything
    assert "antigravity" not in sys.modules  # it would open a browser: sources are read, not imported
    assert not any(text.startswith(("test.", "idlelib", "lib2to3", "encodings.")) for text in everything)


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "one\n\ntwo\r\n\r\nthree \n \t\n four",
        "\n\n\n" + "x" * 40_000 + "\n\n\n\n",
        "a paragraph of words\n\n" * 3_000,
        "a line of words\n" * 4_000,
        "🙂é" * 12_000,
        " " * 40_000 + "end",
        ("line\n" * 700 + "\n") * 900,
    ],
)
def test_documents_of_a_text_file_are_the_file_and_at_most_16_kib(tmp_path, text):
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    documents = opened(file)
    assert "".join(documents) == text
    assert max(len(document.encode()) for document in documents) <= KIB16
    assert len(documents) >= len(text.encode()) / KIB16


def test_a_text_is_cut_at_the_last_blank_line_that_fits(tmp_path):
    first, second, third = "a\n" * 4_000 + "\n\n", "b\n" * 4_000 + "\n", "c\n" * 4_000
    (tmp_path / "a.md").write_text(first + second + third)
    assert opened(tmp_path / "a.md") == [first + second, third]


def test_a_long_paragraph_is_cut_at_line_ends_and_a_long_line_between_characters(tmp_path):
    lines = ("y" * 9_999 + "\n") * 2
    (tmp_path / "lines.txt").write_text(lines)
    assert opened(tmp_path / "lines.txt") == ["y" * 9_999 + "\n"] * 2
    (tmp_path / "line.txt").write_text("a" + "é" * 10_000)
    assert [len(text.encode()) for text in opened(tmp_path / "line.txt")] == [KIB16 - 1, 20_001 - (KIB16 - 1)]


@pytest.mark.parametrize("rest", ["x" * 20_000, "x" * 9_000 + "\n" + "x" * 9_000])
def test_blank_lines_alone_are_no_document(tmp_path, rest):
    (tmp_path / "a.txt").write_text("\n\n\n" + rest)
    first, second = opened(tmp_path / "a.txt")
    assert first.startswith("\n\n\nx") and second.endswith("x")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "there"}\n')
    assert opened(tmp_path) == ["hello", "there"]


def test_a_line_of_json_is_a_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n  \n{"text": " two\\n", "n": 1}\r\n{"text": "é"}')
    assert opened(tmp_path / "a.jsonl") == ["one", " two\n", "é"]


def test_the_text_field_can_be_chosen(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "content": "two"}\n')
    assert opened(tmp_path / "a.jsonl", text_field="content") == ["two"]


def test_a_directory_is_taken_with_all_below_it_by_name(tmp_path):
    for name in ("b.txt", "a/z.MD", "a/b/c.txt", ".hidden/d.txt", "a/.e.txt", "c.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert opened(tmp_path) == ["a/b/c.txt", "a/z.MD", "b.txt"]
    assert opened(tmp_path / "a" / "*.MD") == ["a/z.MD"]
    assert opened(tmp_path / "*" / "b" / "c.*") == ["a/b/c.txt"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.txt", "no file or directory .*gone.txt"),
        ("*.txt", r"nothing matches .*\*.txt"),
        ("*.csv", ".*c.csv has an unsupported extension; use .txt, .md, .jsonl, .json, .parquet, .array_record"),
        ("c.csv", ".*c.csv has an unsupported extension"),
        ("**/*.csv", r"\*\* is not understood in .*; name the directory"),
        (".", "no .txt, .md, .jsonl, .json, .parquet, .array_record file below the directory"),
        ("blank", r"no text in .* \(3 files\)"),
    ],
)
def test_a_source_without_text_is_refused(tmp_path, source, message):
    (tmp_path / "c.csv").write_text("x")
    if source == "blank":
        (tmp_path / "blank").mkdir()
        for name, content in (("a.txt", ""), ("b.txt", " \n" * 20_000), ("c.jsonl", "\n\n")):
            (tmp_path / "blank" / name).write_text(content)
    with pytest.raises(UserError, match=f"^data.source: {message}"):
        open_source(f"{tmp_path}/{source}")


def test_a_misspelt_pydoc_is_recognised():
    with pytest.raises(UserError, match="did you mean 'pydoc'"):
        open_source("pydocs")


def test_a_file_cut_short_after_it_was_indexed_is_an_error(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("some words\n" * 4_000)
    documents = open_source(str(file))
    file.write_text("some words\n")
    with pytest.raises(UserError, match=r"a\.txt: ends before byte \d+; it was changed"):
        documents[1]


def test_identity_follows_content_name_and_field_but_not_the_place(tmp_path):
    def identity(directory: str, name: str = "a.jsonl", text: str = "one", field: str = "text") -> str:
        (tmp_path / directory).mkdir()
        (tmp_path / directory / name).write_text(json.dumps({"text": text, "other": text}) + "\n")
        return open_source(str(tmp_path / directory), field).identity()

    first = identity("1")
    assert identity("2") == first
    assert len({first, identity("3", text="two"), identity("4", name="b.jsonl"), identity("5", field="other")}) == 4


def test_identity_of_texts_sees_where_one_ends():
    assert TextDocuments(["ab", "c"]).identity() != TextDocuments(["a", "bc"]).identity()


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(2, 0.02, 1), (2, 0.99, 1), (100, 0.02, 2), (10, 0.5, 5)])
def test_hold_out_deals_each_document_to_one_side(count, fraction, held_out):
    names = [str(number) for number in range(count)]
    training, validation = hold_out(TextDocuments(names), fraction)
    assert len(validation) == held_out
    assert sorted(texts(training) + texts(validation)) == sorted(names)
    assert texts(training) == sorted(texts(training), key=int)
    assert texts(validation) == sorted(texts(validation), key=int)


def test_hold_out_is_the_same_everywhere_and_takes_from_all_over():
    numbers = TextDocuments([str(number) for number in range(1000)])
    _, validation = hold_out(numbers, 0.1)
    assert texts(validation)[:5] == texts(hold_out(numbers, 0.1)[1])[:5]
    assert 350 < np.mean([int(text) for text in texts(validation)]) < 650


def test_the_two_sides_have_identities_of_their_own():
    numbers = TextDocuments([str(number) for number in range(10)])
    sides = [*hold_out(numbers, 0.1), *hold_out(numbers, 0.2), numbers]
    assert len({side.identity() for side in sides}) == 5


@pytest.mark.parametrize("count", [0, 1])
def test_hold_out_refuses_to_leave_a_side_empty(count):
    with pytest.raises(UserError, match=f"data.validation_fraction: 0.02 of {count} document"):
        hold_out(TextDocuments(["only"] * count), 0.02)


def write_in(file, records: list[dict[str, str]]) -> None:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    elif file.suffix == ".json":
        file.write_text(json.dumps(records, indent=2))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), file, row_group_size=3)
    else:
        writer = ArrayRecordWriter(str(file), "group_size:4")
        for number, record in enumerate(records):
            writer.write(record["text"].encode() if number % 2 else json.dumps(record).encode())
        writer.close()


KINDS = (".jsonl", ".json", ".parquet", ".array_record")


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_each_kind_of_file_are_the_same_documents(tmp_path, kind):
    records = [{"text": f"é {number}\n{{[,", "other": "x"} for number in range(20)]
    write_in(tmp_path / f"a{kind}", records)
    documents = open_source(str(tmp_path))
    order = [13, 0, 19, 5, 5, 18, 2]
    assert [documents[index] for index in order] == [records[index]["text"] for index in order]
    assert len(documents) == 20
    with pytest.raises(IndexError):
        documents[20]


def test_kinds_of_files_may_be_mixed_in_a_directory(tmp_path):
    for number, kind in enumerate(KINDS):
        write_in(tmp_path / f"{number}{kind}", [{"text": f"{kind} {n}"} for n in range(3)])
    (tmp_path / "9.txt").write_text("text")
    assert opened(tmp_path) == [f"{kind} {n}" for kind in KINDS for n in range(3)] + ["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_identity_of_each_kind_follows_content_and_field_but_not_the_place(tmp_path, kind):
    def identity(directory: str, text: str = "one", field: str = "text") -> str:
        (tmp_path / directory).mkdir()
        write_in(tmp_path / directory / f"a{kind}", [{"text": text, "other": text}] * 5)
        return open_source(str(tmp_path / directory), field).identity()

    first = identity("1")
    assert identity("2") == first
    assert len({first, identity("3", text="two"), identity("4", text="longer"), identity("5", field="other")}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_documents_can_be_sent_to_another_process(tmp_path, kind):
    write_in(tmp_path / f"a{kind}", [{"text": f"text {n}"} for n in range(9)])
    documents = open_source(str(tmp_path))
    sent = pickle.loads(pickle.dumps(documents))
    assert (texts(sent), sent.identity()) == (texts(documents), documents.identity())


@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_a_document_of_a_record_file_takes_16_bytes_of_memory(tmp_path, kind):
    file = tmp_path / f"a{kind}"
    separator = "\n" if kind == ".jsonl" else ","
    lines = separator.join([json.dumps({"text": "some words " * 20})] * 20_000)
    file.write_text(lines if kind == ".jsonl" else f"[{lines}]")
    assert len(pickle.dumps(open_source(str(file)))) < 16 * 20_000 + 2_000


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_lines_are_found_wherever_chunks_of_a_file_end(tmp_path, monkeypatch, size):
    monkeypatch.setattr("llama_jax.data.sources.file_bytes.CHUNK_BYTES", size)
    generator = random.Random(0)
    for start in ("", "\ufeff"):
        for end in ("", "\n"):
            parts = ['{"text": "a"}', ' {"text": "bc"}', "", " ", "\r", "\t \r", "[", "   {"]
            lines = [generator.choice(parts) for _ in range(60)] + ['{"text": "end"}']
            (tmp_path / "a.jsonl").write_bytes((start + "\n".join(lines) + end).encode())
            documents = open_source(str(tmp_path / "a.jsonl"))
            places = [number for number, line in enumerate(lines, 1) if line.strip()]
            assert len(documents) == len(places)
            for index, place in enumerate(places):
                try:
                    assert documents[index] == json.loads(lines[place - 1])["text"]
                except BadRecordError as error:
                    assert error.where == f"{tmp_path}/a.jsonl:{place}"
                    assert lines[place - 1].strip() in ("[", "{")


def test_json_lines_may_be_named_json(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert opened(tmp_path / "a.json") == ["one", "two"]


def test_row_groups_are_read_anew_when_not_all_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_jax.data.sources.parquet_files._CACHE_BYTES", 1)
    for name in ("a", "b"):
        write_in(tmp_path / f"{name}.parquet", [{"text": f"{name}{n}"} for n in range(10)])
    documents = open_source(str(tmp_path))
    order = [0, 19, 3, 12, 0, 9, 10, 5]
    assert [documents[index] for index in order] == [f"{'ab'[index // 10]}{index % 10}" for index in order]


def test_many_threads_may_read_at_once(tmp_path):
    for kind in KINDS:
        write_in(tmp_path / f"a{kind}", [{"text": f"{kind} {n}"} for n in range(50)])
    documents = open_source(str(tmp_path))
    expected = texts(documents)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(documents.__getitem__, list(range(200)) * 3)) == expected * 3
