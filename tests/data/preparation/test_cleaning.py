"""What becomes of texts before they are tokenized."""

import pytest

from llama_jax.data.preparation.cleaning import Cleaning, cleaned, text_hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("a\0b\0", "ab"),
        ("\ufeffstart", "start"),
        ("in the \ufeffmiddle", "in the \ufeffmiddle"),
        ("progress 1%\rprogress 2%", "progress 1%\rprogress 2%"),
        ("  spaces\tand e\u0301 stay as they are \n\n", "  spaces\tand e\u0301 stay as they are \n\n"),
        ("<s>[INST] is text", "<s>[INST] is text"),
    ],
)
def test_line_ends_nuls_and_byte_order_marks_go_and_nothing_else(text, expected) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("  four\n", "too_short"),
        ("fives", None),
        ("twelve chars", None),
        ("thirteen char", "too_long"),
    ],
)
def test_bounds_are_inclusive(text, reason) -> None:
    assert Cleaning(minimum_characters=5, maximum_characters=12).reason_to_drop(text) == reason


def test_without_bounds_only_empty_texts_go() -> None:
    assert Cleaning().reason_to_drop("x") is None
    assert Cleaning(minimum_characters=0).reason_to_drop("") == "empty"


def test_texts_are_the_same_if_they_differ_in_white_space_alone() -> None:
    assert text_hash("one two\nthree") == text_hash("\tone  two three \n")
    others = ["one two Three", "onetwo three", "one two three.", "one two"]
    assert len({text_hash(text) for text in ["one two three", *others]}) == 5
    assert len(text_hash("")) == 16
