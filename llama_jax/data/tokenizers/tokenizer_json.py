"""A vocabulary as Hugging Face's `tokenizer.json`."""

import base64
import re
from collections.abc import Mapping
from typing import Any

from llama_jax.data.tokenizers.byte_pairs import (
    BYTE_CUT,
    BYTE_LEVEL,
    IGNORES_MERGES,
    NORMALIZERS,
    PRE_TOKENIZERS,
    merges_of,
)
from llama_jax.data.tokenizers.sentencepiece_model import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from llama_jax.data.tokenizers.vocabulary import Vocabulary

_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def byte_level_json(vocabulary: Vocabulary, pre: str) -> dict[str, Any]:
    """`tokenizer.json` of a vocabulary of kind gpt2. `pre` is a name in `PRE_TOKENIZERS`."""
    return _document(
        vocabulary,
        added=(UNKNOWN, CONTROL, USER_DEFINED),
        normalizer=NORMALIZERS.get(pre),
        pre_tokenizer=PRE_TOKENIZERS[pre],
        decoder=BYTE_LEVEL,
        model={
            "type": "BPE",
            "ignore_merges": pre in IGNORES_MERGES,
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    )


def sentencepiece_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """`tokenizer.json` of a vocabulary of kind llama, laid out like that of Llama 2, or of kind unigram."""
    prefix = vocabulary.adds_space_prefix
    restore = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return _document(
        vocabulary,
        added=(UNKNOWN, CONTROL),
        normalizer={"type": "Sequence", "normalizers": _normalizers(vocabulary)},
        pre_tokenizer=_pre_tokenizer(vocabulary),
        decoder={"type": "Sequence", "decoders": restore + strip * prefix},
        model=_unigram(vocabulary) if vocabulary.model == "unigram" else _merging(vocabulary),
    )


def _normalizers(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """What sentencepiece does to a text, in its order."""
    steps: list[dict[str, Any]] = []
    if vocabulary.charsmap:
        charsmap = base64.b64encode(vocabulary.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if vocabulary.joins_spaces:
        steps += [
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
            for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " "))
        ]
    if vocabulary.adds_space_prefix and not vocabulary.prefixes_first_only:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _pre_tokenizer(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The space before the first word, where no other stretch of text gets one; pieces that the user defined, alone."""
    steps: list[dict[str, Any]] = []
    if vocabulary.adds_space_prefix and vocabulary.prefixes_first_only:
        # Metaspace puts nothing before a text that begins with its own mark, but sentencepiece does. So one whose mark
        # no text has any more (spaces are U+2581 by now) puts it there, and another one replaces it.
        steps = [
            {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme, "split": False}
            for mark, scheme in ((" ", "first"), (SPACE, "never"))
        ]
    if names := _of_type(vocabulary, USER_DEFINED):
        longest_first = sorted(names, key=len, reverse=True)
        pattern = {"Regex": "|".join(map(re.escape, longest_first))}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    if vocabulary.model == "unigram" and BYTE in vocabulary.types:
        # Of text that spells a byte's name, which sentencepiece takes for text: no piece spans the cut.
        pattern = {"Regex": BYTE_CUT}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _of_type(vocabulary: Vocabulary, kind: int) -> list[str]:
    return [token for token, found in zip(vocabulary.tokens, vocabulary.types, strict=True) if found == kind]


def _merging(vocabulary: Vocabulary) -> dict[str, Any]:
    ids = {token: number for number, token in enumerate(vocabulary.tokens) if vocabulary.types[number] == NORMAL}
    scores = vocabulary.scores or [0.0] * len(ids)
    best_first = sorted(ids, key=lambda token: -scores[ids[token]])
    return {
        "type": "BPE",
        "unk_token": next(iter(_of_type(vocabulary, UNKNOWN)), None),
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": USER_DEFINED in vocabulary.types,  # which no merges make
        "merges": merges_of(ids, best_first),
    }


def _unigram(vocabulary: Vocabulary) -> dict[str, Any]:
    scores = vocabulary.scores or [0.0] * len(vocabulary.tokens)
    return {
        "type": "Unigram",
        "unk_id": vocabulary.types.index(UNKNOWN),
        "byte_fallback": BYTE in vocabulary.types,
        "vocab": [[token, score] for token, score in zip(vocabulary.tokens, scores, strict=True)],
    }


def _document(
    vocabulary: Vocabulary, *, added: tuple[int, ...], model: Mapping[str, Any], **parts: Any
) -> dict[str, Any]:
    """The whole file.

    Args:
        added: types of the tokens that are found in text before it is split into words.
    """
    listed = [number for number, kind in enumerate(vocabulary.types) if kind in added]
    last_plain = max(set(range(len(vocabulary.tokens))) - set(listed), default=-1)
    # Tokens after all plain ones get their ids by being added; those before must be in the table to keep theirs.
    table = {token: number for number, token in enumerate(vocabulary.tokens[: last_plain + 1])}
    bos = vocabulary.bos_id
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": each,
                "content": vocabulary.tokens[each],
                **_FLAGS,
                "special": vocabulary.types[each] != USER_DEFINED,
            }
            for each in listed
        ],
        **parts,
        "post_processor": opening(vocabulary.tokens[bos], bos) if bos is not None and vocabulary.adds_bos else None,
        "model": {"vocab": table, **model},
    }


def opening(name: str, number: int) -> dict[str, Any]:
    """The part of the file that puts this token, BOS, before a text, for readers that ask the file for it."""
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
