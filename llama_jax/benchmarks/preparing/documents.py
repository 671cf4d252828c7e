"""Documents to measure preparation with: words of the standard library's documentation, as often as they occur there,
in random order; some documents are another one with a few words changed. The same seed gives the same files."""

import base64
import json
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from llama_jax.benchmarks.preparing.config import MadeDocuments
from llama_jax.data.sources.documents import in_order
from llama_jax.data.sources.opening import open_source
from llama_jax.data.tokenizers import TiktokenTokenizer

_BLOCK = 4096  # documents that are drawn at once; those that are nearly the same are in one block
_LINE_WORDS = 12
_COMMON_PIECES = 8192
_PIECE = re.compile(r"[^\r\n\w]?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+")


def write_documents(made: MadeDocuments, folder: Path, files: int) -> int:
    """Write JSON lines, one document after the other to each file in turn, and return the bytes of all texts in UTF-8.

    Every text has unique words enough that only those made so are near-duplicates.
    """
    words = np.array(_words(), object)
    text_bytes = 0
    with ExitStack() as stack:
        opened = [stack.enter_context((folder / f"{number:02}.jsonl").open("wb")) for number in range(files)]
        for start in range(0, made.documents, _BLOCK):
            drawn = _block(made, start, len(words))
            for number, document in enumerate(drawn[: made.documents - start], start):
                text = _text(words[document].tolist())
                text_bytes += len(text.encode())
                opened[number % files].write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
    return text_bytes


def small_tokenizer() -> TiktokenTokenizer:
    """One that is fast and takes little memory: bytes, and the commonest of what Llama 3 splits text into."""
    common = Counter(_PIECE.findall(" ".join(_words()))).most_common(_COMMON_PIECES)
    tokens = [*(bytes([byte]) for byte in range(256)), *(piece.encode() for piece, _ in common if len(piece) > 1)]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    return TiktokenTokenizer(b"".join(lines))


def _block(made: MadeDocuments, start: int, vocabulary: int) -> list[np.ndarray]:
    """Numbers of words of the documents of a block; lengths are from half to one and a half times the mean."""
    random = np.random.default_rng((made.seed, start))
    lengths = random.integers(-(-made.words // 2), made.words * 3 // 2 + 1, _BLOCK)
    documents = np.split(random.integers(0, vocabulary, lengths.sum()), np.cumsum(lengths)[:-1])
    copies = np.flatnonzero(random.random(_BLOCK) < made.near_duplicates)
    for copy in copies[copies > 0].tolist():
        changed = documents[random.integers(copy)].copy()
        places = random.integers(0, len(changed), max(1, round(made.changed * len(changed))))
        changed[places] = random.integers(0, vocabulary, len(places))
        documents[copy] = changed
    return documents


def _text(words: list[str]) -> str:
    lines = (words[place : place + _LINE_WORDS] for place in range(0, len(words), _LINE_WORDS))
    return "\n".join(map(" ".join, lines))


def _words() -> list[str]:
    return [word for document in in_order(open_source("pydoc", "text")) for word in str(document).split()]
