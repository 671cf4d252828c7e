"""Tokenizers small enough to compute with by hand."""

import struct
from collections.abc import Callable, Sequence

import pytest

from llama_jax.data.tokenizers import Llama2cTokenizer, SentencePieceTokenizer, train_tokenizer

TALE = """The miller had three sons, his mill, a donkey, and a cat; in 1812 the sons had to grind.
The donkey had to haul grain and carry away the flour, and the cat had to catch the mice away.
When the miller died, the three sons divided the inheritance: the oldest took the mill,
the second took the donkey, and nothing was left for the youngest son but the cat."""


def llama2c_file(pieces: Sequence[tuple[bytes, float]]) -> bytes:
    """A llama2.c tokenizer with the given (piece, score) after the control tokens and the bytes."""
    everything = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0)]
    everything += [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
    everything += pieces
    longest = max(len(piece) for piece, _ in everything)
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", score, len(piece)) + piece for piece, score in everything
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
