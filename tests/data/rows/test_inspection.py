"""Rows as text with their marks, and what is counted of them, on rows small enough to count by hand."""

import numpy as np
import pytest

from llama_jax.data.rows.display import Piece, segments_of
from llama_jax.data.rows.inspection import Lengths, RowStatistics, measure_lengths
from llama_jax.data.sources.documents import TextDocuments


def row_of(parts: list[tuple[list[int], list[float]]], length: int) -> dict[str, np.ndarray]:
    """A row of documents, each its ids and the weight of every id after the first."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    row["loss_weights"] = np.zeros(length, np.float32)
    start = 0
    for number, (ids, weights) in enumerate(parts, 1):
        places = slice(start, start + len(ids) - 1)
        row["tokens"][places], row["targets"][places] = ids[:-1], ids[1:]
        row["segment_ids"][places], row["loss_weights"][places] = number, weights
        row["positions"][places] = np.arange(len(ids) - 1)
        start += len(ids) - 1
    return row


def encoded(text: str) -> list[int]:
    """By `byte_tokenizer`, without the space before it."""
    return [259 if character == " " else 3 + ord(character) for character in text]


@pytest.fixture
def instruction_row() -> dict[str, np.ndarray]:
    """`ask` and then `yes` with its end, which alone bear loss; the beginning of `go on`; three places of padding."""
    question, answer = [1, *encoded("ask")], [*encoded("yes"), 2]
    return row_of([([*question, *answer], [0] * 3 + [1] * 4), ([1, *encoded("go")], [0.5, 1])], 12)


def test_tokens_that_bear_loss_are_parted_from_those_that_are_read(instruction_row, byte_tokenizer) -> None:
    first, second = segments_of(instruction_row, byte_tokenizer)
    bos, eos = (
        next(name for name, token in byte_tokenizer.special_tokens.items() if token == wanted) for wanted in (1, 2)
    )
    assert first.pieces == [Piece(f"{bos}ask", False), Piece(f"yes{eos}", True)]
    assert (first.tokens, first.loss_tokens, first.opens, first.closes) == (8, 4, True, True)
    assert second.pieces == [Piece(bos, False), Piece("go", True)]
    assert (second.tokens, second.loss_tokens, second.opens, second.closes) == (3, 2, True, False)


def test_a_character_of_several_tokens_is_not_cut(byte_tokenizer) -> None:
    ids = [3 + byte for byte in "é€".encode()]
    (segment,) = segments_of(row_of([(ids, [1] * 4)], 4), byte_tokenizer)
    assert "".join(piece.text for piece in segment.pieces) == "é€"
    assert not segment.opens and not segment.closes


def test_padding_cuts_and_documents_are_counted(instruction_row, byte_tokenizer) -> None:
    statistics = RowStatistics()
    statistics.add(instruction_row, byte_tokenizer)
    whole = [1, *encoded("abc"), 2]
    statistics.add(row_of([(whole, [1] * 4)] * 3, 12), byte_tokenizer)
    statistics.add(row_of([], 12), byte_tokenizer)
    assert statistics.to_json() == pytest.approx(
        {
            "rows": 3,
            "tokens": 36,
            "padding_share": (3 + 12) / 36,
            "loss_share": (4 + 2 + 12) / 36,
            "segments_per_row": 5 / 3,
            "segments_split_share": 1 / 5,
            "rows_cut_share": 1 / 3,
        }
    )


def test_lengths_of_all_documents_are_exact_and_bad_ones_are_counted(byte_tokenizer) -> None:
    texts = ["a" * length for length in range(100)]
    texts[7] = "\ud800"
    measured = measure_lengths(TextDocuments(texts), byte_tokenizer, 100)
    expected = [len(byte_tokenizer.encode(text, bos=True, eos=True)) for text in texts if text != "\ud800"]
    assert measured.lengths.tolist() == expected
    assert (measured.is_exact, measured.sampled, measured.dropped) == (True, 100, {"surrogate": 1})
    assert measured.total == sum(expected)
    assert measured.total_predicted == sum(expected) - 99


def test_totals_are_estimated_from_documents_all_over_the_source(byte_tokenizer) -> None:
    documents = TextDocuments(["a" * (number // 10) for number in range(1000)])
    measured = measure_lengths(documents, byte_tokenizer, 50)
    assert (measured.sampled, measured.is_exact) == (50, False)
    total = sum(len(byte_tokenizer.encode(documents[number], bos=True, eos=True)) for number in range(1000))
    assert measured.total == pytest.approx(total, rel=0.02)


def test_percentiles_are_lengths_that_occur() -> None:
    measured = Lengths(documents=101, lengths=np.arange(1, 102))
    assert measured.percentiles() == {"1": 2, "10": 11, "50": 51, "90": 91, "99": 100, "100": 101}
    assert measured.longer_than(80) == 20 / 101  # 82 tokens and more
    assert Lengths(documents=0, lengths=np.zeros(0, np.int64)).percentiles() == {}
