import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from ledgers import ledger_at

from llama_jax.core.errors import UserError
from llama_jax.data.rows.packing import Epochs, PackedRows, token_ids, validation_rows
from llama_jax.data.rows.positions import SourcePosition
from llama_jax.data.sources.documents import BadRecordError, Documents, TextDocuments

FIELDS = {"tokens", "targets", "loss_weights", "segment_ids", "positions"}
SPACE, A, B, C = 259, 100, 101, 102  # ids of the byte tokenizer


def numbered(count: int) -> TextDocuments:
    """Documents of different lengths that each begin with their number."""
    return TextDocuments([f"{number}:" + "x" * (number * 7 % 23) for number in range(count)])


def packed(documents: Documents, tokenizer, length: int, stream=(0, 1), seed=0, **hooks) -> PackedRows:
    return PackedRows(documents, tokenizer, length, Epochs(len(documents), seed), stream, **hooks)


class Damaged:
    """Documents of which some cannot be read."""

    def __init__(self, documents: Documents, bad: dict[int, str]) -> None:
        self._documents = documents
        self.bad = bad

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str | np.ndarray:
        if index in self.bad:
            raise BadRecordError(self.bad[index], f"file:{index + 1}", "is bad")
        return self._documents[index]

    def identity(self) -> str:
        return "damaged"


class Ids:
    """Documents that are ids already."""

    def __init__(self, documents: list[list[int]]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self._documents[index], np.int32)

    def identity(self) -> str:
        return "ids"


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
    documents = numbered(40)
    found = []
    for stream in range(4):
        rows = itertools.islice(packed(documents, byte_tokenizer, 16, (stream, 4)), 40)
        found += words_of(rows, byte_tokenizer)[:10]
    assert sorted(found) == sorted(documents[index] for index in range(40))


def test_each_epoch_and_each_seed_has_an_order_of_its_own(byte_tokenizer):
    def words(seed: int) -> list[str]:
        return words_of(itertools.islice(packed(numbered(40), byte_tokenizer, 16, seed=seed), 100), byte_tokenizer)

    first, second, other = words(0)[:40], words(0)[40:80], words(7)[:40]
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second and first != other
    assert words(0)[:40] == first


def test_sources_of_one_size_have_orders_of_their_own():
    first, second = Epochs(40, 0, source=0), Epochs(40, 0, source=1)
    assert [first[place] for place in range(40)] != [second[place] for place in range(40)]


def test_epochs_of_many_documents_differ_too():
    epochs = Epochs(3_000, 0)
    first, second = ([epochs[place] for place in range(start, start + 3_000)] for start in (0, 3_000))
    assert sorted(first) == sorted(second) == list(range(3_000))
    assert first != second


def test_places_in_any_order_belong_to_the_same_epochs():
    epochs, again = Epochs(5_000, 3), Epochs(5_000, 3)
    places = [0, 30_000, 4_999, 12_345, 1, 29_999, 5_000, 10_000, 15_000, 20_000, 0]
    assert [epochs[place] for place in places] == [again[place] for place in places]
    assert sorted(epochs[place] for place in range(10_000, 15_000)) == list(range(5_000))


def test_fewer_documents_than_streams_are_dealt_in_turn(byte_tokenizer):
    for stream in (0, 63):
        rows = itertools.islice(packed(numbered(30), byte_tokenizer, 8, (stream, 64)), 8)
        assert all((row["loss_weights"] == 1).all() for row in rows)


@pytest.mark.parametrize("length", [5, 13, 40])
def test_a_position_restores_exactly_also_across_epochs(byte_tokenizer, length):
    # Documents of 5 pairs, so that rows of 5 end where documents end; 7 of them are bad.
    documents = Damaged(TextDocuments([f"{number:03d}" for number in range(30)]), dict.fromkeys(range(7), "bad"))
    rows = packed(documents, byte_tokenizer, length, (1, 3))
    positions, expected = [], []
    for _ in range(30):
        positions.append(json.dumps(rows.position().to_json()))
        expected.append(next(rows))
    assert max(map(len, positions)) < 60
    for start in range(0, 28, 5):
        again = packed(documents, byte_tokenizer, length, (1, 3))
        again.restore(SourcePosition.from_json(json.loads(positions[start])))
        for row in expected[start : start + 2]:
            assert_same(next(again), row)
        assert json.dumps(again.position().to_json()) == positions[start + 2]


def test_rows_do_not_depend_on_what_was_read_ahead(byte_tokenizer):
    documents = Damaged(numbered(20), {3: "bad"})
    alone, ahead = (packed(documents, byte_tokenizer, 16, (1, 3)) for _ in range(2))
    for count in (1, 4, 2, 9, 1):
        wanted = ahead.lookahead(count)
        read = [BadRecordError("bad", "file:4", "is bad") if number == 3 else documents[number] for number in wanted]
        ahead.supply(read)
        for _ in range(count):
            assert_same(next(ahead), next(alone))
        assert ahead.position() == alone.position()
        restored = packed(documents, byte_tokenizer, 16, (1, 3))
        restored.restore(ahead.position())
        ahead = restored


def test_as_many_documents_are_read_ahead_as_the_rows_need(byte_tokenizer):
    documents = TextDocuments([f"{number:03d}" for number in range(100)])  # 5 pairs each
    rows = packed(documents, byte_tokenizer, 20)
    for _ in range(50):
        next(rows)
    wanted = rows.lookahead(10)
    assert 38 <= len(wanted) <= 44
    rows.supply([documents[number] for number in wanted])
    assert len(rows.lookahead(10)) <= 3


def test_ids_are_packed_as_they_are(byte_tokenizer):
    rows = packed(Ids([[1, 50, 51, 2]]), byte_tokenizer, 4)
    assert next(rows)["tokens"].tolist() == [1, 50, 51, 1]
    assert next(rows)["targets"].tolist() == [51, 2, 50, 51]


@pytest.mark.parametrize(
    ("document", "reason", "named"),
    [
        (np.array([], np.int32), "empty", "0 token ids"),
        (np.array([1], np.int32), "empty", "1 token ids"),
        (np.array([1, 260, 2], np.int32), "wrong_ids", "260 is beyond the tokenizer's 260"),
        (np.array([1, -5, 2], np.int32), "wrong_ids", "beyond"),
        ("half \ud800", "surrogate", "at character 5"),
    ],
)
def test_ids_that_are_none_are_bad_records(byte_tokenizer, document, reason, named):
    with pytest.raises(BadRecordError, match=named) as error:
        token_ids(document, byte_tokenizer, 7)
    assert (error.value.reason, error.value.where) == (reason, "document 7")


def test_bad_documents_are_left_out_and_counted_each_time(byte_tokenizer):
    documents = Damaged(numbered(40), {3: "not_json", 8: "empty", 9: "empty"})
    told: list[str] = []
    rows = packed(documents, byte_tokenizer, 16, on_bad=lambda error: told.append(str(error)))
    words = words_of(itertools.islice(rows, 300), byte_tokenizer)
    position = rows.position()
    assert len(words) > 80
    assert not {documents._documents[index] for index in (3, 8, 9)} & {*words}
    assert position.documents - position.dropped["not_json"] - position.dropped["empty"] == len(words) + (
        position.offset > 0
    )
    assert position.dropped["empty"] in range(2 * (position.documents // 40), 2 * (position.documents // 40 + 1) + 1)
    assert len(told) == sum(position.dropped.values())
    assert {*told} == {"file:4: is bad", "file:9: is bad", "file:10: is bad"}
    assert list(validation_rows(documents, byte_tokenizer, 16))


def test_a_source_with_nothing_that_can_be_used_is_given_up(byte_tokenizer):
    with pytest.raises(UserError, match="10000 documents one after another cannot be used; the last: file:1: is bad"):
        next(packed(Damaged(TextDocuments(["a"]), {0: "bad"}), byte_tokenizer, 8))


def test_a_document_that_was_changed_while_it_was_under_way_is_named(byte_tokenizer):
    documents = Damaged(TextDocuments(["abcdefghij"]), {})
    rows = packed(documents, byte_tokenizer, 8)
    next(rows)
    position = rows.position()
    documents.bad[0] = "not_json"
    again = packed(documents, byte_tokenizer, 8)
    again.restore(position)
    with pytest.raises(UserError, match="file:1: is bad; it could be read before"):
        next(again)
    shorter = packed(TextDocuments(["abc"]), byte_tokenizer, 8)
    shorter.restore(position)
    with pytest.raises(UserError, match="document 0 is shorter than when the run read it"):
        next(shorter)


def test_the_ledger_can_be_computed_from_the_position(byte_tokenizer):
    documents = Damaged(numbered(30), {4: "bad"})
    rows = packed(documents, byte_tokenizer, 16, (1, 3))
    for number in range(24):
        next(rows)
        if number % 5 == 3:
            assert (
                ledger_at(documents, byte_tokenizer, Epochs(30, 0), (1, 3), rows.position()) == rows.position().ledger
            )
    assert rows.position().documents > 20  # two epochs of ten documents


def test_a_row_that_is_left_out_or_given_twice_shows_in_the_ledger(byte_tokenizer):
    documents = numbered(30)
    rows = packed(documents, byte_tokenizer, 16)

    def ledger(position: SourcePosition) -> int:
        return ledger_at(documents, byte_tokenizer, Epochs(30, 0), (0, 1), position)

    next(rows)
    before = rows.position()
    next(rows)
    after = rows.position()
    assert ledger(replace(after, ledger=before.ledger)) == after.ledger != before.ledger
    rows.restore(replace(before, ledger=after.ledger))
    next(rows)
    assert ledger(rows.position()) != rows.position().ledger


def test_the_users_error_in_a_document_comes_through(byte_tokenizer):
    class Gone(Damaged):
        def __getitem__(self, index: int) -> str:
            raise UserError("a.jsonl: is gone")

    with pytest.raises(UserError, match=r"a\.jsonl: is gone"):
        next(packed(Gone(numbered(3), {}), byte_tokenizer, 8))
