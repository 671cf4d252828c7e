"""Byte-pair encoding as files spell it: lists of merges, bytes written as characters, and how text is split into the
words within which bytes merge.

The patterns are those of the models' own `tokenizer.json`; llama.cpp knows them by name (src/llama-vocab.cpp)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from llama_jax.data.tokenizers.tiktoken_model import LLAMA3_PATTERN

Part = TypeVar("Part", str, bytes)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _split(*patterns: str) -> dict[str, Any]:
    """Splits by each pattern in turn; what a pattern does not match stays whole."""
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL | {"use_regex": False}]}


_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SUFFIX"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SUFFIX"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""A capital within a word begins a new one."""
_TEKKEN_PATTERN = _CASED.replace("SUFFIX", "").replace("DIGITS", r"\p{N}")
_GPT4O_PATTERN = _CASED.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")

PRE_TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "gpt-2": BYTE_LEVEL,
    "llama-bpe": _split(LLAMA3_PATTERN),
    "smaug-bpe": _split(LLAMA3_PATTERN),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
    "qwen2": _split(LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")),
    "tekken": _split(_TEKKEN_PATTERN),
    "gpt-4o": _split(_GPT4O_PATTERN),
    "default": _split(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
"""How text is split into words, by llama.cpp's names."""

SINGLE_PATTERNS = {
    "gpt-2": rf"{_GPT2_PATTERN}|\s+",
    # Digits are split off first, so that white space before one stays whole, as at the end.
    "smollm": _GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])") + r"|\s+",
    **dict.fromkeys(("llama-bpe", "smaug-bpe"), LLAMA3_PATTERN),
    "tekken": _TEKKEN_PATTERN,
    "gpt-4o": _GPT4O_PATTERN,
}
"""Of the splittings that can be said so, the one pattern whose matches are the words. No normaliser comes before."""

PRE_ALIASES = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), "llama-bpe"
    ),
    **dict.fromkeys(("dbrx", "glm4", "chatglm-bpe"), "smaug-bpe"),
    **dict.fromkeys(("phi-2", "gigachat", "mellum", "mpt", "olmo", "jais", "trillion", "exaone4"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
}
"""Further names of the same splittings."""

BYTE_CUT = "<(?=0x[0-9A-F]{2}>)"
"""Finds the first character of text that spells sentencepiece's name of a byte, which is none."""

NORMALIZERS = {"qwen2": {"type": "NFC"}}
IGNORES_MERGES = ("llama-bpe", "tekken")  # a word that is a token is one, whatever the merges say
OPENS_WITH_BOS = ("llama-bpe", "tekken")  # where a file does not say


def pre_name(content: Mapping[str, Any]) -> str | None:
    """The name of the splitting that a `tokenizer.json` describes; None if it is none of those known."""
    described, ignores_merges = _without_offsets(content.get("pre_tokenizer")), content["model"].get("ignore_merges")
    names = [
        name
        for name, pre_tokenizer in PRE_TOKENIZERS.items()
        if described == _without_offsets(pre_tokenizer) and content.get("normalizer") == NORMALIZERS.get(name)
    ]
    return min(names, key=lambda name: (name in IGNORES_MERGES) != bool(ignores_merges), default=None)


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


def merges_in(content: Mapping[str, Any]) -> list[Sequence[str]]:
    """The pairs that a `tokenizer.json` lists, which older files write with a space between them."""
    merges = content["model"]["merges"]
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]


def byte_characters() -> Sequence[str]:
    """GPT-2's character for each byte: itself where it is printable Latin-1, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
