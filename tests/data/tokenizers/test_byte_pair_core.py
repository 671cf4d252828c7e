"""Byte-pair encoding by tiktoken's core: the ids of Hugging Face's library for every text, or none."""

import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import tokenizers
from small_tokenizers import BESIDE, HARD_TEXTS, TALE, byte_level_file
from sweeps import some

from llama_jax.data.sources.opening import open_source
from llama_jax.data.tokenizers import HuggingFaceTokenizer
from llama_jax.data.tokenizers.byte_pair_core import core_of
from llama_jax.data.tokenizers.byte_pairs import PRE_TOKENIZERS, SINGLE_PATTERNS, byte_characters

ALPHABETS = [
    "abcdefghij ABC'",
    "a",
    " ",
    " \n\t\r",
    " \n\u00a0\u2003\u3000\u0085\u001c\u200b",
    "0123456789 ½²Ⅷ४१",
    "'s't're've'm'll'd'S'LL'ſ",
    ".,;:!?-_/\\()[]{}<>|@#$%^&*+=~`\"'",
    "éüßñçøåæœ ÀÉ",
    "中文字日本語한국어。、",
    "हिन्दी العَرَبِيَّة e\u0301\u0327 ",
    "👨\u200d👩🏳️🌈🙂\ufe0f",
    "".join(map(chr, range(128))),
    "ǅǈªºʰ\u0345 \U00011de3\U00016ff4\U0001e4d0",
    "<|bos|><|eos|><think>",
]


def random_texts(count: int, seed: int, words: Sequence[str]) -> list[str]:
    """Of the characters of some alphabets, of words, and of any characters at all."""
    chosen = random.Random(seed)

    def piece() -> str:
        kind = chosen.random()
        if kind < 0.7:
            return "".join(chosen.choices(chosen.choice(ALPHABETS), k=chosen.choice((1, 1, 2, 3, 5, 20))))
        if kind < 0.95:
            return chosen.choice(words)
        points = (chosen.choice((0x250, 0x3000, 0x20000, sys.maxunicode)) for _ in range(3))
        return "".join(chr(chosen.randrange(point)) for point in points).encode(errors="ignore").decode()

    return ["".join(piece() for _ in range(chosen.randint(1, 25))) for _ in range(count)]


def content_with(splitting: str, **model: Any) -> dict[str, Any]:
    content = json.loads(byte_level_file())
    content["pre_tokenizer"] = PRE_TOKENIZERS[splitting]
    content["model"] |= model
    return content


def tokenizer_of(content: dict[str, Any]) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(json.dumps(content).encode(), BESIDE)


def assert_same_ids(tokenizer: HuggingFaceTokenizer, texts: Sequence[str], least: float = 0.9) -> None:
    """Of a share of the texts at least the core gives ids, and they are the library's."""
    core = core_of(tokenizer.content())
    assert core is not None
    given = 0
    for text in texts:
        expected = tokenizer.encode(text, bos=True, eos=True)
        assert tokenizer.encode_document(text) == expected, repr(text)
        if "<think>" not in text and (ids := core.encode(text)) is not None:
            given += 1
            assert ids == expected[1:-1], repr(text)
    assert given >= least * len(texts)


@pytest.mark.parametrize("splitting", some(SINGLE_PATTERNS, ("smollm", "llama-bpe")))
def test_ids_are_those_of_the_library(splitting) -> None:
    tokenizer = tokenizer_of(content_with(splitting))
    assert_same_ids(tokenizer, [*HARD_TEXTS, TALE, *random_texts(200, 0, TALE.split())], least=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("splitting", SINGLE_PATTERNS)
def test_ids_are_those_of_the_library_for_many_texts(splitting, ignore_merges) -> None:
    documents = open_source("pydoc", "text")
    real = [str(documents[number]) for number in range(0, len(documents), 3)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    # All bytes but a few that hardly any text has, as in the vocabulary of SmolLM2.
    alphabet = [character for byte, character in enumerate(byte_characters()) if byte not in (4, 0xC0, 0xF1)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=6000, special_tokens=["<|bos|>", "<|eos|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(real + random_texts(2000, 1, TALE.split()), trainer)
    content = json.loads(made.to_str())
    content["pre_tokenizer"] = PRE_TOKENIZERS[splitting]
    content["model"]["ignore_merges"] = ignore_merges
    words = [word for text in real[:50] for word in text.split()]
    assert_same_ids(tokenizer_of(content), [*real, *HARD_TEXTS, *random_texts(15_000, 2, words)], least=0.7)


def test_long_texts_and_long_runs_have_the_same_ids() -> None:
    tokenizer = tokenizer_of(content_with("smollm"))
    long = [TALE * 100, TALE * 100 + " " * 60_000 + TALE, "ab" * 20_000, "\n" * 30_000 + "x", "(. " * 20_000]
    core = core_of(tokenizer.content())
    assert core is not None and [core.encode(text) is None for text in long] == [False, True, True, True, True]
    for text in long:
        assert tokenizer.encode_document(text) == tokenizer.encode(text, bos=True, eos=True)


def test_names_of_tokens_are_found_only_where_the_library_finds_them() -> None:
    tokenizer = tokenizer_of(content_with("gpt-2"))
    text = "the <think> cat <|eos|> <|bos|>"
    ids = tokenizer.encode_document(text)
    assert ids == tokenizer.encode(text, bos=True, eos=True)
    assert ids.count(2) == 1 and ids[0] == 0 and ids[-1] == 1 and not {0, 1} & set(ids[1:-1])


def test_characters_that_the_libraries_know_differently_are_left_to_the_library() -> None:
    """U+11DE3 is a digit since Unicode 17, which not all of them have."""
    tokenizer = tokenizer_of(content_with("smollm"))
    text = "a  \U00011de3\U00011de3 b"
    assert tokenizer.encode_document(text) == tokenizer.encode(text, bos=True, eos=True)


def merges(content: dict[str, Any]) -> list[list[str]]:
    return [list(merge) for merge in content["model"]["merges"]]


def test_files_that_merge_in_another_order_than_that_of_ids_have_no_core() -> None:
    content = content_with("gpt-2")
    assert core_of(content) is not None
    pairs = merges(content)
    pairs[0], pairs[-1] = pairs[-1], pairs[0]
    content["model"]["merges"] = pairs
    assert core_of(content) is None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": PRE_TOKENIZERS["default"]},
        {"pre_tokenizer": None},
    ],
)
def test_files_that_split_in_another_way_have_no_core(change) -> None:
    assert core_of(content_with("gpt-2") | change) is None


def test_a_token_that_no_merges_make_is_never_merged() -> None:
    """With `ignore_merges` it is a token where it is a whole word, which tiktoken cannot tell from a part of one."""
    content = content_with("gpt-2")
    content["model"]["vocab"] |= {"zq": len(content["model"]["vocab"])}
    assert_same_ids(tokenizer_of(content), ["zq", "zqzq", "a zq"])
    content["model"]["ignore_merges"] = True
    assert core_of(content) is None
    assert tokenizer_of(content).encode_document("zq zqa")[1] == content["model"]["vocab"]["zq"]


def test_with_ignore_merges_a_word_is_a_token_that_no_merges_make() -> None:
    content = content_with("gpt-2", ignore_merges=True)
    content["model"]["vocab"] |= {"zqx": len(content["model"]["vocab"])}
    tokenizer = tokenizer_of(content)
    assert_same_ids(tokenizer, ["zqx", "zqxzqx", "a zqx", "zqx zqx"])
    assert tokenizer.encode_document("zqx")[1:-1] == [content["model"]["vocab"]["zqx"]]
