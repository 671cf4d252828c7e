import random
import time

import pytest
from small_tokenizers import HARD_TEXTS, with_control_tokens

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.stream_decoding import StreamDecoder


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.finish()]


@pytest.mark.parametrize("text", [*HARD_TEXTS, " ".join(HARD_TEXTS)])
def test_the_parts_are_the_whole(every_tokenizer, text):
    for each in every_tokenizer:
        parts = streamed(each, each.encode(text, bos=True, eos=True))
        assert "".join(parts) == text
        assert "\ufffd" not in "".join(parts)


def test_the_parts_of_any_ids_are_the_whole(every_tokenizer):
    generator = random.Random(0)
    for each in every_tokenizer:
        known = [token for text in HARD_TEXTS for token in each.encode(text)]
        everything = [*range(each.vocab_size), *each.special_tokens.values()]
        for _ in range(40):
            ids = generator.choices(known, k=30) + generator.choices(everything, k=30) + generator.choices(known, k=10)
            generator.shuffle(ids)
            assert "".join(streamed(each, ids)) == each.decode(ids)


def test_a_character_comes_whole(byte_tokenizer, tiktoken_tokenizer):
    assert streamed(tiktoken_tokenizer, [0x61, *"🙂".encode(), 0x62]) == ["a", "", "", "", "🙂", "b", ""]
    assert streamed(byte_tokenizer, [3 + byte for byte in "é".encode()]) == ["", "é", ""]


def test_half_a_character_at_the_end_is_given_at_the_end(tiktoken_tokenizer):
    assert streamed(tiktoken_tokenizer, [0x61, 0xE2, 0x82]) == ["a", "", "", "\ufffd"]
    assert streamed(tiktoken_tokenizer, [0xFF, 0x61]) == ["", "\ufffda", ""]


def test_wrong_bytes_do_not_pile_up(tiktoken_tokenizer):
    parts = streamed(tiktoken_tokenizer, [0xFF] * 100)
    assert "".join(parts) == "\ufffd" * 100
    assert parts[50] == "\ufffd"


def test_spaces_between_words_are_kept(tokenizer):
    ids = tokenizer.encode("the cat the cat")
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == "the cat the cat"
    assert parts[0] and not parts[0].startswith(" ")


def test_a_space_after_many_control_tokens_is_kept(tokenizer):
    grown = with_control_tokens(tokenizer, [f"[{number}]" for number in range(20)])
    ids = [*tokenizer.encode("the"), *range(320, 340), *tokenizer.encode("cat")]
    assert "".join(streamed(grown, ids)) == "the cat"


@pytest.mark.parametrize("kind", ["text", "control", "wrong"])
def test_the_cost_of_a_token_does_not_grow(tiktoken_tokenizer, kind):
    ids = {"text": [258], "control": [261, 262, 270], "wrong": [0xFF]}[kind]
    decoder = StreamDecoder(tiktoken_tokenizer)

    def seconds() -> float:
        started = time.process_time()
        for step in range(500):
            decoder.push(ids[step % len(ids)])
        return time.process_time() - started

    first = seconds()
    for _ in range(10):
        seconds()
    assert min(seconds() for _ in range(3)) < 5 * first
    assert len(decoder._window) <= 17
