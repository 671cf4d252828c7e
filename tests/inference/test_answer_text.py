"""The text of an answer, token by token."""

import pytest

from llama_jax.data.tokenizers import train_tokenizer
from llama_jax.inference.text import AnswerText

TOKENIZER = train_tokenizer([f"Document {number} says that twice it is {2 * number}." for number in range(99)], 300)
PROMPT = TOKENIZER.encode("Document 7", bos=True)
WHOLE = TOKENIZER.encode("Document 7 says that ünïcode is 14.", bos=True)
ANSWER = " says that ünïcode is 14."


def pieces(stops=()) -> tuple[list[str], bool]:
    text = AnswerText(TOKENIZER, PROMPT, stops)
    given = [text.push(token) for token in WHOLE[len(PROMPT) :]]
    return [*given, text.finish()], text.stopped


def test_pieces_are_what_the_answer_adds_and_never_half_a_character() -> None:
    assert WHOLE[: len(PROMPT)] == PROMPT
    given, stopped = pieces()
    assert "".join(given) == ANSWER and not stopped
    assert not any("\ufffd" in piece for piece in given)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["that"], " says "),  # across tokens
        (["is", "that ü"], " says "),
        (["code is 15", "is 14."], " says that ünïcode "),
        (["at ünïcode is 15", "ïc"], " says that ün"),  # a longer one has begun, and does not come
        (["at ünïcode", "ünïc"], " says th"),  # and does come
        (["", "nowhere"], ANSWER),
        (["14.!"], ANSWER),  # begins at the end
    ],
)
def test_a_text_ends_before_the_first_stop(stops, expected) -> None:
    given, stopped = pieces(stops)
    assert "".join(given) == expected
    assert stopped == (expected != ANSWER)
