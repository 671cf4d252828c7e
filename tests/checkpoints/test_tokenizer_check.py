"""A conversion whose tokenizer gives other ids is refused, and what a format cannot say is noted."""

import json

import pytest
from small_tokenizers import with_control_tokens

from llama_jax.checkpoints.tokenizer_check import compared_tokenizers
from llama_jax.core.errors import CannotGoOnError
from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    Tokenizer,
    files_of_vocabulary,
    tokenizer_from_files,
    train_tokenizer,
    vocabulary_of,
)

TEXT = "The miller had three sons,\n  his mill, a donkey,\n\nand a cat; in 1812 the sons had to grind."
END, START = "<|im_end|>", "<|im_start|>"


@pytest.fixture(scope="module")
def before() -> HuggingFaceTokenizer:
    return with_control_tokens(train_tokenizer([TEXT], 300), [END, START])


def changed(tokenizer: HuggingFaceTokenizer, change) -> Tokenizer:
    """The tokenizer with a change of its file."""
    files = tokenizer.files()
    content = json.loads(files["tokenizer.json"])
    change(content)
    return tokenizer_from_files({**files, "tokenizer.json": json.dumps(content).encode()}, "there")


def compare(before: Tokenizer, after: Tokenizer) -> dict:
    return compared_tokenizers(before, after, TEXT, 302, "out")


def test_the_same_tokenizer_in_another_format_passes(before) -> None:
    after = tokenizer_from_files(files_of_vocabulary(vocabulary_of(before)), "there")
    assert compare(before, after) == {"control_tokens": 4, "tokens_of_text": 59, "notes": []}
    assert compare(after, before)["notes"] == []


def rename(content: dict) -> None:
    content["added_tokens"][-1]["content"] = "<|other|>"


def swap(content: dict) -> None:
    first, second = content["added_tokens"][-2:]
    first["content"], second["content"] = second["content"], first["content"]


def lose_a_merge(content: dict) -> None:
    del content["model"]["merges"][0]


def lose_the_space(content: dict) -> None:
    content["normalizer"]["normalizers"] = content["normalizer"]["normalizers"][1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"out: not written, token '<\|im_start\|>' is 301 in the source, none there"),
        (swap, r"out: not written, token '<\|im_end\|>' is 300 in the source, 301 there"),
        (lose_a_merge, r"out: not written, text has ids \[.*\] in the source at \d+, \[.*\] there"),
        (lose_the_space, r"out: not written, text has ids \[.*\] in the source at 0, \[.*\] there"),
    ],
)
def test_other_ids_are_no_copy(before, change, message) -> None:
    with pytest.raises(CannotGoOnError, match=message):
        compare(before, changed(before, change))


def test_another_eos_is_no_copy(before) -> None:
    config = json.loads(before.files()["tokenizer_config.json"]) | {"eos_token": END}
    after = tokenizer_from_files(before.files() | {"tokenizer_config.json": json.dumps(config).encode()}, "there")
    with pytest.raises(CannotGoOnError, match="EOS is 2 in the source and 300 there"):
        compare(before, after)


def test_what_gguf_cannot_say_is_a_note(before) -> None:
    model = before.files()["tokenizer.model"]
    config = {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": [END, START]}
    files = {"tokenizer.model": model, "tokenizer_config.json": json.dumps(config).encode()}
    here = tokenizer_from_files(files, "here")
    assert here.encode(f"{END}a", special=True) != before.encode(f"{END}a", special=True)
    after = tokenizer_from_files(files_of_vocabulary(vocabulary_of(here)), "there")
    assert compare(here, after)["notes"] == [
        "text that follows a control token has other ids there: the format cannot say how it is split"
    ]


def test_tokens_beyond_the_models_rows_do_not_matter(before) -> None:
    assert compared_tokenizers(before, changed(before, rename), TEXT, 301, "out")["control_tokens"] == 3
