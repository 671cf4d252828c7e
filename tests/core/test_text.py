"""How alike texts are, against numbers computed by hand."""

import pytest

from llama_jax.core.text import rouge_l


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        # Lin 2004, section 3.1: "police the gunman" has the common subsequence of 2 words, "the gunman": P = R = 1/2.
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("the cat sat on the mat", "The cat, sat!", 2 * 3 / 9),
        ("a b c d", "d c b a", 1 / 4),
        ("l'été 2024", "l t 2024", 1.0),  # what is neither a-z nor 0-9 parts words
        ("words", "", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(reference, answer, expected) -> None:
    assert rouge_l(reference, answer) == pytest.approx(expected)
    assert rouge_l(answer, reference) == pytest.approx(expected)
