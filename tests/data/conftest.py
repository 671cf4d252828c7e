"""Tokenizers small enough to compute with by hand."""

from collections.abc import Callable, Sequence

import pytest
from small_tokenizers import BESIDE, TALE, byte_level_file, llama2c_file, tiktoken_file

from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    Llama2cTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    hugging_face_files,
    train_tokenizer,
)


@pytest.fixture(scope="session")
def write_llama2c() -> Callable[[Sequence[tuple[bytes, float]]], bytes]:
    return llama2c_file


@pytest.fixture(scope="session")
def byte_tokenizer() -> Llama2cTokenizer:
    """259 for a space, 3 + its value for every other byte; a text is encoded with a space before it."""
    return Llama2cTokenizer(llama2c_file([(b" ", 0.0)]))


@pytest.fixture(scope="session")
def tale() -> str:
    return TALE


@pytest.fixture(scope="session")
def tokenizer(tale: str) -> SentencePieceTokenizer:
    return train_tokenizer([tale], 320)


@pytest.fixture(scope="session")
def tiktoken_tokenizer() -> TiktokenTokenizer:
    return TiktokenTokenizer(tiktoken_file())


@pytest.fixture(scope="session")
def json_tokenizer() -> HuggingFaceTokenizer:
    """A `tokenizer.json` that asks for BOS, with settings beside it."""
    return HuggingFaceTokenizer(byte_level_file(), BESIDE)


@pytest.fixture(scope="session")
def fallback_tokenizer(tokenizer: SentencePieceTokenizer) -> HuggingFaceTokenizer:
    """The sentencepiece model as a `tokenizer.json` of Llama 2's kind."""
    files = hugging_face_files(tokenizer)
    return HuggingFaceTokenizer(files["tokenizer.json"], {"tokenizer_config.json": files["tokenizer_config.json"]})


@pytest.fixture(scope="session")
def every_tokenizer(tokenizer, byte_tokenizer, tiktoken_tokenizer, json_tokenizer, fallback_tokenizer):
    return (tokenizer, byte_tokenizer, tiktoken_tokenizer, json_tokenizer, fallback_tokenizer)
