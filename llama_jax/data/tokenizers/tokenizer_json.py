"""`tokenizer.json` of a vocabulary: byte-level as in GPT-2 and Llama 3, or sentencepiece's kind as in Llama 2."""

from collections.abc import Mapping
from typing import Any

from llama_jax.data.tokenizers.byte_pairs import BYTE_LEVEL, IGNORES_MERGES, NORMALIZERS, PRE_TOKENIZERS, merges_of
from llama_jax.data.tokenizers.sentencepiece_model import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from llama_jax.data.tokenizers.vocabulary import Vocabulary


def byte_level_json(vocabulary: Vocabulary, pre: str) -> dict[str, Any]:
    """`tokenizer.json` of a vocabulary of kind gpt2. `pre` is a name in `PRE_TOKENIZERS`."""
    return _document(
        vocabulary,
        normalizer=NORMALIZERS.get(pre),
        pre_tokenizer=PRE_TOKENIZERS[pre],
        decoder=BYTE_LEVEL,
        model={
            "ignore_merges": pre in IGNORES_MERGES,
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    )


def sentencepiece_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """`tokenizer.json` of a vocabulary of kind llama, laid out like that of Llama 2."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens) if vocabulary.types[number] == NORMAL}
    scores = vocabulary.scores or [0.0] * len(ids)
    best_first = sorted(ids, key=lambda token: -scores[ids[token]])
    prefix = vocabulary.adds_space_prefix
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    restore = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    unknown = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNKNOWN]
    return _document(
        vocabulary,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}] * prefix + [replace]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": restore + strip * prefix},
        model={
            "unk_token": next(iter(unknown), None),
            "fuse_unk": True,
            "byte_fallback": True,
            "merges": merges_of(ids, best_first),
        },
    )


def _document(vocabulary: Vocabulary, *, model: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    added = [number for number, kind in enumerate(vocabulary.types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    last_plain = max(set(range(len(vocabulary.tokens))) - set(added), default=-1)
    # Tokens after all plain ones get their ids by being added; those before must be in the table to keep theirs.
    table = {token: number for number, token in enumerate(vocabulary.tokens[: last_plain + 1])}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": each, "content": vocabulary.tokens[each], **plain, "special": vocabulary.types[each] != USER_DEFINED}
            for each in added
        ],
        **parts,
        "post_processor": _opening(vocabulary),
        "model": {"type": "BPE", "vocab": table, **model},
    }


def _opening(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Puts BOS before a text, for readers that ask the file for it."""
    if vocabulary.bos_id is None or not vocabulary.adds_bos:
        return None
    bos = vocabulary.tokens[vocabulary.bos_id]
    opening = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [opening, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [opening, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
    }
