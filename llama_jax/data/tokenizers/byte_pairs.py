"""Byte-pair encoding as files spell it: lists of merges, bytes written as characters, and how text is split into the
words within which bytes merge.

The patterns are those of the models' own `tokenizer.json`; llama.cpp knows them by name (src/llama-vocab.cpp)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from llama_jax.data.tokenizers.tiktoken_model import LLAMA3_PATTERN

Part = TypeVar("Part", str, bytes)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [regex, BYTE_LEVEL | {"use_regex": False}]}


PRE_TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "gpt-2": BYTE_LEVEL,
    "llama-bpe": _split(LLAMA3_PATTERN),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
    "qwen2": _split(LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")),
}
"""How text is split into words, by llama.cpp's names."""

# Files from before llama.cpp named the patterns say "default", and were made from models that split as GPT-2 does.
PRE_ALIASES = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}

NORMALIZERS = {"qwen2": {"type": "NFC"}}
IGNORES_MERGES = ("llama-bpe",)  # a word that is a token is one, whatever the merges say


def pre_name(content: Mapping[str, Any]) -> str | None:
    """The name of the splitting that a `tokenizer.json` describes; None if it is none of those known."""
    described = _without_offsets(content.get("pre_tokenizer"))
    for name, pre_tokenizer in PRE_TOKENIZERS.items():
        if described == _without_offsets(pre_tokenizer) and content.get("normalizer") == NORMALIZERS.get(name):
            return name
    return None


def _without_offsets(part: Any) -> Any:
    """Without `trim_offsets`, which changes no id."""
    if isinstance(part, dict):
        return {key: _without_offsets(value) for key, value in part.items() if key != "trim_offsets"}
    return [_without_offsets(each) for each in part] if isinstance(part, list) else part


def merges_of(ids: Mapping[Part, int], best_first: Iterable[Part]) -> list[list[Part]]:
    """Every pair of tokens that together are a token, in the order in which merging should try them."""
    merges: list[list[Part]] = []
    for token in best_first:
        splits = ((token[:middle], token[middle:]) for middle in range(1, len(token)))
        known = ((ids[left], ids[right], left, right) for left, right in splits if left in ids and right in ids)
        merges += [[left, right] for _, _, left, right in sorted(known)]
    return merges


def byte_characters() -> Sequence[str]:
    """GPT-2's character for each byte: itself where it is printable Latin-1, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
