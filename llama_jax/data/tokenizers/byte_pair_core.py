"""Byte-pair encoding of bytes by tiktoken's core: the ids of Hugging Face's library, several times as fast.

Only for files of which `core_of` can tell that the ids are the same, and only for texts of which `encode` can."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from llama_jax.data.tokenizers.byte_pairs import SINGLE_PATTERNS, byte_characters, merges_in, pre_name

_LONGEST_SLICE = 25_000
"""Characters: tiktoken is slow with long runs of letters, and gives up on runs of white space that are too long."""
_CUT = re.compile(r"\w ")
"""No pattern of `SINGLE_PATTERNS` has a match with a space behind a letter or digit, nor one that looks back."""

_ASCII = bytes(range(128))
_CLASSES = (r"\s", *(rf"\p{{{name}}}" for name in ("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N")), "(?i:[dlmrestv])")
"""What the patterns ask of a character."""

_Members = Callable[[str], set[str]]


class BytePairCore:
    """Encodes ordinary text.

    Args:
        pattern: Splits text into words.
        ids: Of every token, by its bytes; words merge in the order of ids.
    """

    def __init__(self, pattern: str, ids: Mapping[bytes, int]) -> None:
        import tiktoken  # when first used: commands that only print help start without it

        self._without_id = bytes(byte for byte in range(256) if bytes([byte]) not in ids)
        # tiktoken wants an id for every byte. No text comes to it with these.
        more = {bytes([byte]): max(ids.values()) + 1 + place for place, byte in enumerate(self._without_id)}
        self._encoding = tiktoken.Encoding("core", pat_str=pattern, mergeable_ranks={**ids, **more}, special_tokens={})

    def encode(self, text: str) -> list[int] | None:
        """Ids of a text, which must be UTF-8; None where the library might give others.

        It would where the two have different versions of Unicode and disagree on what a character is, or where a byte
        has no token. Runs of thousands of letters or spaces are left to it, too.
        """
        encoded = text.encode()
        if self._without_id and len(encoded.translate(None, self._without_id)) < len(encoded):
            return None
        if not text.isascii() and not _agreed(encoded.translate(None, _ASCII).decode()):
            return None
        if len(text) <= _LONGEST_SLICE:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for part in _slices(text):
            if part is None:
                return None
            ids += self._encoding.encode_ordinary(part)
        return ids


def core_of(content: Mapping[str, Any]) -> BytePairCore | None:
    """The same encoding as a `tokenizer.json` describes for text in which no added token is found; None where it may be
    another."""
    pattern = SINGLE_PATTERNS.get(pre_name(content) or "")
    if pattern is None or not _agreed(_ASCII.decode()):
        return None
    ids = _ids_by_bytes(content)
    return None if ids is None else BytePairCore(pattern, ids)


def _ids_by_bytes(content: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The tokens with which tiktoken merges as the file says; None where it would not.

    The file lists pairs to merge, in order. tiktoken merges any two neighbours that together are a token, the one with
    the least id first. Say two neighbours x, y that together are the token t come up in a text. No merge crossed the
    ends of t before, so what happened between them happens to the text t alone as well: it comes to x, y, too. Hence it
    is one pair for each t, and it is listed exactly if the text t merges into one token. So without the tokens that
    their own text does not merge into, both always have the same pairs to choose from, and choose alike if ids ascend
    in the order of merges. With `ignore_merges` a word that is such a token becomes it all the same, as in tiktoken,
    which is right as long as its text does not end as two neighbours, which tiktoken would join within longer words.
    """
    import tokenizers

    model = content["model"]
    others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if "merges" not in model or any(model.get(name) for name in others):
        return None
    vocabulary, merges = model["vocab"], merges_in(content)
    if any(first > second for first, second in pairwise(vocabulary[left + right] for left, right in merges)):
        return None
    merging = tokenizers.models.BPE(vocabulary, [(left, right) for left, right in merges])
    characters = byte_characters()
    spelled, byte_of = frozenset(characters), {ord(character): byte for byte, character in enumerate(characters)}
    ids: dict[bytes, int] = {}
    for word, token in vocabulary.items():
        if not word or not spelled.issuperset(word):
            continue  # no text has it
        parts = len(merging.tokenize(word))
        if parts == 2 and model.get("ignore_merges"):
            return None
        if parts == 1 or model.get("ignore_merges"):
            ids[word.translate(byte_of).encode("latin-1")] = token
    return ids


def _slices(text: str) -> Iterator[str | None]:
    """The text cut where words end in any case; None where it has too long a run without such a place."""
    start = 0
    while len(text) - start > _LONGEST_SLICE:
        place = _CUT.search(text, start + _LONGEST_SLICE // 2, start + _LONGEST_SLICE)
        if place is None:
            yield None
            return
        yield text[start : place.start() + 1]
        start = place.start() + 1
    yield text[start:]


_SAME, _DIFFERENT = {"\0"}, set[str]()
"""Characters about which both libraries were asked; NUL is in no class."""


def _agreed(characters: str) -> bool:
    """Whether all of these characters are in the same classes for both libraries."""
    if _SAME.issuperset(characters):
        return True
    new = "".join(set(characters) - _SAME - _DIFFERENT)
    different = set[str]().union(*(theirs(new) ^ ours(new) for theirs, ours in _members()))
    _DIFFERENT.update(different)
    _SAME.update(set(new) - different)
    return _SAME.issuperset(characters)


@functools.cache
def _members() -> list[tuple[_Members, _Members]]:
    """For each class, functions that give those of some characters that are in it, for one library and the other."""
    import tiktoken
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Digits, PreTokenizer, Split

    bytes_alone = {bytes([byte]): byte for byte in range(256)}

    def isolated(splitter: PreTokenizer, characters: str) -> set[str]:
        pieces = splitter.pre_tokenize_str("\0".join(("", *characters, "")))
        return {piece for piece, _ in pieces if "\0" not in piece}

    def matched(encoding: tiktoken.Encoding, characters: str) -> set[str]:
        return set(bytes(encoding.encode_ordinary(characters)).decode())  # what nothing matches is left out

    def pair(splitter: PreTokenizer, pattern: str) -> tuple[_Members, _Members]:
        encoding = tiktoken.Encoding(pattern, pat_str=pattern, mergeable_ranks=bytes_alone, special_tokens={})
        return functools.partial(isolated, splitter), functools.partial(matched, encoding)

    digits = pair(Digits(individual_digits=True), r"\p{N}")
    return [digits, *(pair(Split(Regex(pattern), "isolated"), pattern) for pattern in _CLASSES)]
