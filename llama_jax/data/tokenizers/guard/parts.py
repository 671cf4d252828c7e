"""What a tokenizer file declares that could make a small text large, or take long over it. Looks at declarations alone;
the text is never seen."""

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.data.tokenizers.byte_pairs import PRE_TOKENIZERS

_MOST_GROWTH = 64  # times the length of the text
_MOST_PARTS = 16
_LONGEST_STRING = 256
_LONGEST_TOKEN = 1024
_LONGEST_REPLACEMENT = 256  # bytes; NFKC's longest has 33

_LONGEST_PATTERN = 4096
_LETTER = r"(?:[^\\()\[\]{}*+?|]|\\[^A-Za-z0-9])"
_AHEAD = rf"(?:\(\?=(?:{_LETTER}|\[(?:\w-\w)+\](?:\{{\d\}})?)+\))?"
_WORDS = re.compile(rf"{_LETTER}+{_AHEAD}(?:\|{_LETTER}+{_AHEAD})*")
"""An expression of words as they stand, one or the other, each perhaps before another: nothing in it is repeated, so
that it looks at few characters from each place of a text."""

_MEMBERS = ("normalizers", "pretokenizers", "decoders", "processors")
_HARMLESS = frozenset(
    [
        *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt", "BertNormalizer"),
        *("BertPreTokenizer", "CharDelimiterSplit", "Digits", "Punctuation", "UnicodeScripts", "Whitespace"),
        *("WhitespaceSplit", "Metaspace", "ByteFallback", "Fuse", "Prepend"),
    ]
)
"""Parts of `tokenizer.json` that look at every character once and write no more than a few for it."""


def is_bounded(content: Mapping[str, Any]) -> bool:
    """Whether nothing in a `tokenizer.json` can make more than some times the length of a text of it, or match for
    long: every part is known to be harmless, and every pattern is one of `PRE_TOKENIZERS` or of words as they stand."""
    try:
        parts = [content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
        model: Mapping[str, Any] = content["model"]
        return (
            all(_growth(part) <= _MOST_GROWTH for part in parts)
            and sum(map(_count, parts)) <= _MOST_PARTS
            and _repeats(content.get("post_processor")) <= 1
            and (model.get("type") in ("BPE", "Unigram", "WordLevel") or ("type" not in model and "merges" in model))
            and all(len(text) <= _LONGEST_STRING for part in (*parts, model) for text in _texts(part))
            and _longest_token(content) <= _LONGEST_TOKEN
        )
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError):
        return False  # it is not laid out as such files are


def longest_replacement(characters_map: bytes) -> int:
    """Bytes of the longest text that a map of sentencepiece's ("precompiled_charsmap") puts in place of another. After
    the size of a trie and the trie itself it has the texts, each ended by NUL."""
    size = int.from_bytes(characters_map[:4], "little")
    return max(map(len, characters_map[4 + size :].split(b"\0")), default=0)


def check_replacements(characters_map: bytes) -> None:
    """Refuse a map that makes a small text large.

    Raises:
        ValueError: it does.
    """
    if (longest := longest_replacement(characters_map)) > _LONGEST_REPLACEMENT:
        raise ValueError(
            f"its normaliser puts up to {longest} bytes in place of a character; at most {_LONGEST_REPLACEMENT} may be"
        )


def _growth(part: Any) -> float:
    """How many times longer a part may make a text; infinite where that is not known."""
    if part is None:
        return 1.0
    kind = part.get("type")
    if kind == "Sequence":
        return math.prod(_growth(member) for member in _members(part))
    if kind == "ByteLevel":
        return 2.0
    if kind in ("Replace", "Split"):
        return _pattern_growth(part.get("pattern"), part.get("content") if kind == "Replace" else "")
    if kind == "Precompiled":
        return 1.0 if _is_short_map(part.get("precompiled_charsmap")) else math.inf
    return 1.0 if kind in _HARMLESS else math.inf


def _pattern_growth(pattern: Any, content: Any) -> float:
    if not isinstance(pattern, dict) or not isinstance(content, str):
        return math.inf
    if text := pattern.get("String"):
        return max(1.0, len(content) / len(text))
    expression = pattern["Regex"]
    is_known = expression in _KNOWN_PATTERNS or (len(expression) <= _LONGEST_PATTERN and _WORDS.fullmatch(expression))
    return 1.0 if is_known and not content else math.inf


def _is_short_map(encoded: Any) -> bool:
    try:
        return longest_replacement(base64.b64decode(encoded or "")) <= _LONGEST_REPLACEMENT
    except (binascii.Error, TypeError, ValueError):
        return False


def _members(part: Mapping[str, Any]) -> Sequence[Any]:
    """Those under every name: which the library takes depends on where the part stands."""
    return [member for name in _MEMBERS for member in part.get(name, ())]


def _count(part: Any) -> int:
    return 0 if part is None else 1 + sum(map(_count, _members(part)))


def _repeats(processor: Any) -> int:
    """How often a text is given for itself, at the most."""
    if processor is None:
        return 1
    own = sum("Sequence" in piece for piece in processor.get("single", ()))
    return math.prod(map(_repeats, _members(processor)), start=max(1, own))


def _longest_token(content: Mapping[str, Any]) -> int:
    vocabulary, added = content["model"].get("vocab", {}), content.get("added_tokens") or ()
    tokens = vocabulary if isinstance(vocabulary, dict) else [each[0] for each in vocabulary]
    return max(map(len, [*tokens, *(each["content"] for each in added)]), default=0)


def _texts(part: Any) -> list[str]:
    """The texts that a part and its members hold, but for patterns and maps."""
    if part is None:
        return []
    own = [value for name, value in part.items() if isinstance(value, str) and name != "precompiled_charsmap"]
    return own + [text for member in _members(part) for text in _texts(member)]


def _patterns(part: Mapping[str, Any]) -> list[str]:
    own = [part["pattern"]["Regex"]] if "pattern" in part else []
    return own + [found for member in _members(part) for found in _patterns(member)]


_KNOWN_PATTERNS = frozenset(pattern for part in PRE_TOKENIZERS.values() for pattern in _patterns(part))
