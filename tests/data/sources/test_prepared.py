"""The prepared form: what is written comes back, by number, wherever it is read; damage is told from data."""

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError, Documents
from llama_jax.data.sources.opening import open_source
from llama_jax.data.sources.prepared import (
    Manifest,
    ShardWriter,
    id_dtype,
    open_prepared,
    read_manifest,
    shard_name,
)

LENGTHS = [[3, 1, 400], [], [2, 70_000, 5, 1]]
"""Tokens of each document of each shard."""


def ids_of(document: int, length: int, vocab_size: int) -> list[int]:
    return [(document * 7919 + place) % vocab_size for place in range(length)]


def write_directory(directory: Path, vocab_size: int = 32_000) -> list[list[int]]:
    """A prepared directory; returns the ids of its documents."""
    written: list[list[int]] = []
    shards = []
    for number, lengths in enumerate(LENGTHS):
        name = shard_name(number, len(LENGTHS))
        with ShardWriter(directory / name, id_dtype(vocab_size)) as writer:
            for length in lengths:
                written.append(ids_of(len(written), length, vocab_size))
                writer.write(written[-1], text_bytes=2 * length)
            shards.append(writer.finish(name))
    manifest = Manifest(
        tokenizer="f" * 64,
        vocab_size=vocab_size,
        dtype=id_dtype(vocab_size),
        source="texts",
        settings={"deduplicate": False},
        source_documents=8,
        documents=len(written),
        tokens=sum(map(len, written)),
        text_bytes=2 * sum(map(len, written)),
        dropped={"empty": 1},
        shards=tuple(shards),
    )
    (directory / "manifest.json").write_text(manifest.to_json())
    return written


@pytest.fixture
def prepared(tmp_path) -> tuple[Path, list[list[int]]]:
    return tmp_path, write_directory(tmp_path)


def test_documents_come_back_by_number(prepared) -> None:
    directory, written = prepared
    documents = open_prepared(directory)
    assert isinstance(documents, Documents)
    assert len(documents) == 7
    for index in (6, 0, 3, 2, 5, 1, 4):
        assert documents[index].dtype == np.int32
        assert documents[index].tolist() == written[index]
    assert documents.manifest.tokens == 3 + 1 + 400 + 2 + 70_000 + 5 + 1
    assert (documents.manifest.text_bytes, documents.tokenizer_fingerprint) == (2 * 70_412, "f" * 64)
    for index in (-1, 7):
        with pytest.raises(IndexError):
            documents[index]


@pytest.mark.parametrize(("vocab_size", "bytes_of_an_id"), [(65_536, 2), (65_537, 4), (128_256, 4)])
def test_ids_take_two_bytes_where_the_vocabulary_fits(tmp_path, vocab_size, bytes_of_an_id) -> None:
    written = write_directory(tmp_path, vocab_size)
    assert [documents.tolist() for documents in open_prepared(tmp_path)] == written
    assert max(written[4]) == vocab_size - 1 or vocab_size > 70_000
    size = (tmp_path / shard_name(2, 3)).stat().st_size
    assert bytes_of_an_id * 70_008 < size < bytes_of_an_id * 70_008 + 2**17


def test_many_are_read_in_the_order_asked_for(prepared) -> None:
    directory, written = prepared
    order = [5, 0, 5, 6, 2, 1, 4, 3]
    assert [ids.tolist() for ids in open_prepared(directory).read_many(order)] == [written[index] for index in order]


def test_threads_pickles_and_forks_read_the_same(prepared) -> None:
    directory, written = prepared
    documents = open_prepared(directory)
    indices = list(range(7)) * 40
    with ThreadPoolExecutor(8) as pool:
        assert [ids.tolist() for ids in pool.map(documents.__getitem__, indices)] == [written[i] for i in indices]
    assert pickle.loads(pickle.dumps(documents))[4].tolist() == written[4]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        sender.send(documents[4].tolist() == written[4])
        os._exit(0)
    assert receiver.poll(60) and receiver.recv()
    os.waitpid(child, 0)


def test_the_identity_is_that_of_the_ids(tmp_path) -> None:
    directories = [tmp_path / name for name in "abc"]
    for directory, vocab_size in zip(directories, (32_000, 32_000, 31_999), strict=True):
        directory.mkdir()
        write_directory(directory, vocab_size)
    first, moved, other = (open_prepared(directory).identity() for directory in directories)
    assert first == moved != other


def test_a_directory_of_something_else_is_refused(tmp_path) -> None:
    for number, content in enumerate(['{"format": "another"}', "", "[]"]):
        other = tmp_path / f"other{number}"
        other.mkdir()
        (other / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json"):
            read_manifest(other)


def test_shards_without_their_manifest_are_not_taken_for_texts(tmp_path) -> None:
    write_directory(tmp_path)
    assert len(open_source(str(tmp_path)))
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "plan.json").write_text("{}")
    assert len(open_source(str(tmp_path)))  # finished, but for the removal of what led there
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        open_source(str(tmp_path))


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_spoils_one_record_and_says_which(prepared) -> None:
    directory, written = prepared
    flip_a_bit(directory / shard_name(2, 3), 100_000)
    documents = open_prepared(directory)
    with pytest.raises(BadRecordError, match=r"shard-00002-of-00003\.array_record record 1: ") as caught:
        documents[4]
    assert caught.value.reason == "damaged"
    many = documents.read_many(range(7))
    assert isinstance(many[4], BadRecordError)
    assert [many[index].tolist() for index in (0, 1, 2, 3, 5, 6)] == [written[i] for i in (0, 1, 2, 3, 5, 6)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has [0-9]+ bytes, but manifest.json says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has [0-9]+ bytes, but manifest.json says"),
    ],
    ids=["missing", "truncated", "too long"],
)
def test_a_shard_of_another_size_is_refused_when_the_directory_is_opened(prepared, damage, message) -> None:
    damage(prepared[0] / shard_name(2, 3))
    with pytest.raises(UserError, match=rf"shard-00002-of-00003\.array_record: {message}") as caught:
        open_prepared(prepared[0])
    assert "\n" not in str(caught.value)


def test_a_shard_without_its_index_is_refused_when_it_is_read(prepared) -> None:
    path = prepared[0] / shard_name(2, 3)
    path.write_bytes(bytes(path.stat().st_size))
    documents = open_prepared(prepared[0])
    documents[0]
    with pytest.raises(UserError, match=r"shard-00002-of-00003\.array_record: is damaged, .* 0 documents, .* 4;"):
        documents[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has format 'llama_jax.prepared' 2"),
        ({"tokens": "many"}, "tokens is 'many'; a whole number"),
        ({"documents": True}, "documents is True; a whole number"),
        ({"documents": 8}, "documents is 8, which is not the sum"),
        ({"dtype": "float32"}, "dtype is 'float32'; uint16 or uint32"),
        ({"tokenizer": None}, "tokenizer is None; text"),
        ({"dropped": []}, r"dropped is \[\]; an object"),
        ({"shards": {}}, r"shards is \{\}; a list"),
        ({"shards": ["a"]}, "shard 0: is 'a'; an object"),
        ({"shards": [{"file": "../a"}]}, "shard 0: documents is None; a whole number"),
    ],
)
def test_a_broken_manifest_names_the_field(prepared, change, message) -> None:
    file = prepared[0] / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=rf"manifest\.json: {message}"):
        open_prepared(prepared[0])


def test_a_manifest_does_not_lead_out_of_its_directory(prepared) -> None:
    file = prepared[0] / "manifest.json"
    content = json.loads(file.read_text())
    content["shards"][0]["file"] = "../" + content["shards"][0]["file"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="a name without a folder"):
        open_prepared(prepared[0])
