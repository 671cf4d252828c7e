import itertools
import json

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.packing import position_of, restore_position, training_stream, validation_rows
from llama_jax.data.sources import TextDocuments, open_source

FIELDS = {"tokens", "targets", "loss_weights", "segment_ids", "positions"}
SPACE, A, B, C = 259, 100, 101, 102  # ids of the byte tokenizer


def numbered(count: int) -> TextDocuments:
    """Documents of different lengths that each begin with their number."""
    return TextDocuments([f"{number}:" + "x" * (number * 7 % 23) for number in range(count)])


def words_of(rows, tokenizer) -> list[str]:
    """The whole documents in rows of one stream, in order; the one that is cut at the end is left out."""
    targets = np.concatenate([row["targets"][row["segment_ids"] > 0] for row in rows])
    ends = np.flatnonzero(targets == tokenizer.eos_id)
    return [tokenizer.decode(ids.tolist()) for ids in np.split(targets, ends + 1)[:-1]]


def assert_same(row, other):
    assert row.keys() == other.keys()
    for name in row:
        np.testing.assert_array_equal(row[name], other[name])


def test_rows_are_what_one_computes_by_hand(byte_tokenizer):
    # "a" is BOS _ a EOS: three pairs. "bc" is BOS _ b c EOS: four pairs. Rows of five.
    rows = list(validation_rows(TextDocuments(["a", "bc"]), byte_tokenizer, 5))
    assert len(rows) == 2
    expected = [
        {
            "tokens": [1, SPACE, A, 1, SPACE],
            "targets": [SPACE, A, 2, SPACE, B],
            "loss_weights": [1, 1, 1, 1, 1],
            "segment_ids": [1, 1, 1, 2, 2],
            "positions": [0, 1, 2, 0, 1],
        },
        {
            "tokens": [B, C, 0, 0, 0],
            "targets": [C, 2, 0, 0, 0],
            "loss_weights": [1, 1, 0, 0, 0],
            "segment_ids": [1, 1, 0, 0, 0],
            "positions": [0, 1, 0, 0, 0],
        },
    ]
    for row, columns in zip(rows, expected, strict=True):
        assert_same(row, {name: np.array(column) for name, column in columns.items()})
        assert {name: array.dtype for name, array in row.items()} == {
            name: np.float32 if name == "loss_weights" else np.int32 for name in FIELDS
        }


@pytest.mark.parametrize("sequence_length", [2, 3, 7, 8, 64, 1000])
def test_validation_makes_every_token_a_target_once(byte_tokenizer, sequence_length):
    documents = numbered(20)
    rows = list(validation_rows(documents, byte_tokenizer, sequence_length))
    counted = [row["targets"][row["loss_weights"] == 1] for row in rows]
    expected = [byte_tokenizer.encode(documents[index], eos=True) for index in range(20)]
    assert np.concatenate(counted).tolist() == list(itertools.chain(*expected))
    assert all((row["loss_weights"] == 1).all() for row in rows[:-1])


def test_an_epoch_deals_each_document_to_one_stream_once(byte_tokenizer):
    config = DataConfig(sequence_length=16, streams=4)
    documents = numbered(40)
    found = []
    for stream in range(4):
        rows = itertools.islice(training_stream(documents, byte_tokenizer, config, 0, stream), 40)
        found += words_of(rows, byte_tokenizer)[:10]
    assert sorted(found) == sorted(documents[index] for index in range(40))


def test_each_epoch_and_each_seed_has_an_order_of_its_own(byte_tokenizer):
    config = DataConfig(sequence_length=16, streams=1)

    def words(seed: int) -> list[str]:
        return words_of(
            itertools.islice(training_stream(numbered(40), byte_tokenizer, config, seed, 0), 100), byte_tokenizer
        )

    first, second, other = words(0)[:40], words(0)[40:80], words(7)[:40]
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second and first != other
    assert words(0)[:40] == first


def test_epochs_of_many_documents_differ_too(byte_tokenizer):
    documents = TextDocuments([str(number) for number in range(3_000)])
    config = DataConfig(sequence_length=4_000, streams=1)
    words = words_of(itertools.islice(training_stream(documents, byte_tokenizer, config, 0, 0), 10), byte_tokenizer)
    assert sorted(words[:3_000]) == sorted(words[3_000:6_000])
    assert words[:3_000] != words[3_000:6_000]


def test_fewer_documents_than_streams_are_dealt_in_turn(byte_tokenizer):
    config = DataConfig(sequence_length=8, streams=64)
    for stream in (0, 63):
        rows = itertools.islice(training_stream(numbered(30), byte_tokenizer, config, 0, stream), 8)
        assert all((row["loss_weights"] == 1).all() for row in rows)


@pytest.mark.parametrize("length", [5, 13, 40])
def test_a_position_restores_exactly_also_across_epochs(byte_tokenizer, length):
    # Documents of 5 pairs: rows of 5 end where documents end, which is where grain's own state does not survive JSON.
    documents = TextDocuments([f"{number:03d}" for number in range(30)])
    config = DataConfig(sequence_length=length, streams=3)
    rows = iter(training_stream(documents, byte_tokenizer, config, 0, 1))
    positions, expected = [], []
    for _ in range(30):
        positions.append(json.dumps(position_of(rows)))
        expected.append(next(rows))
    assert max(map(len, positions)) < 40
    for start in range(0, 28, 5):
        again = iter(training_stream(documents, byte_tokenizer, config, 0, 1))
        restore_position(again, json.loads(positions[start]))
        for row in expected[start : start + 2]:
            assert_same(next(again), row)


def test_the_users_error_in_a_document_comes_through(tmp_path, byte_tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 30)
    documents = open_source(DataConfig(source=str(tmp_path / "a.jsonl")))
    with pytest.raises(UserError, match=r"a\.jsonl:\d+: field 'text' is empty"):
        next(iter(training_stream(documents, byte_tokenizer, DataConfig(), 0, 0)))
