import json
import sys

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.sources import Documents, TextDocuments, hold_out, open_source

KIB16 = 16 * 1024


def texts(documents: Documents) -> list[str]:
    return [documents[index] for index in range(len(documents))]


def opened(path, **fields) -> list[str]:
    return texts(open_source(DataConfig(source=str(path), **fields)))


@pytest.fixture(scope="module")
def pydoc() -> Documents:
    return open_source(DataConfig())


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
    assert texts(open_source(DataConfig())) == everything
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


@pytest.mark.parametrize("offset", [0, 5, KIB16 - 1, KIB16 + 7, 3_000_000])
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(tmp_path, offset):
    content = bytearray(b"some words\n" * 300_000)
    content[offset] = 0xFF
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a.txt: not UTF-8 at byte {offset}$"):
        opened(tmp_path / "a.txt")


def test_a_line_of_json_is_a_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n  \n{"text": " two\\n", "n": 1}\r\n{"text": "é"}')
    assert opened(tmp_path / "a.jsonl") == ["one", " two\n", "é"]


def test_the_text_field_can_be_chosen(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "content": "two"}\n')
    assert opened(tmp_path / "a.jsonl", text_field="content") == ["two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', "not JSON: Expecting ',' delimiter, column 13"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"text": ' + b"9" * 5_000 + b"}", "not JSON that can be read"),
        (b'["text"]', "a JSON list; each line must be an object with the field 'text'"),
        (b'{"texts": "x"}', r"no field 'text' \(data.text_field\); it has texts; did you mean 'texts'"),
        (b"{}", r"no field 'text' \(data.text_field\); it has no field"),
        (b'{"text": null}', "field 'text' is of type NoneType; it must be a string"),
        (b'{"text": ["x"]}', "field 'text' is of type list"),
        (b'{"text": ""}', "field 'text' is empty"),
        (b'{"text": " \\n"}', "field 'text' is empty"),
        (b'{"text": "ab\\ud800"}', "field 'text' holds half a surrogate pair at character 2"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10 of the line"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    documents = open_source(DataConfig(source=str(file)))
    assert (len(documents), documents[0], documents[2]) == (3, "good", "good")
    with pytest.raises(UserError, match=rf"a\.jsonl:3: {message}") as error:
        documents[1]
    assert "\n" not in str(error.value)


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
        ("*.csv", ".*c.csv is of no known kind; use .txt, .md, .jsonl"),
        ("c.csv", ".*c.csv is of no known kind"),
        ("**/*.csv", r"\*\* is not understood in .*; name the directory"),
        (".", "no .txt, .md, .jsonl file below the directory"),
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
        open_source(DataConfig(source=f"{tmp_path}/{source}"))


def test_a_misspelt_pydoc_is_recognised():
    with pytest.raises(UserError, match="did you mean 'pydoc'"):
        open_source(DataConfig(source="pydocs"))


def test_a_file_cut_short_after_it_was_indexed_is_an_error(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("some words\n" * 4_000)
    documents = open_source(DataConfig(source=str(file)))
    file.write_text("some words\n")
    with pytest.raises(UserError, match=r"a\.txt: ends before byte \d+; it was changed"):
        documents[1]


def test_identity_follows_content_name_and_field_but_not_the_place(tmp_path):
    def identity(directory: str, name: str = "a.jsonl", text: str = "one", field: str = "text") -> str:
        (tmp_path / directory).mkdir()
        (tmp_path / directory / name).write_text(json.dumps({"text": text, "other": text}) + "\n")
        return open_source(DataConfig(source=str(tmp_path / directory), text_field=field)).identity()

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
