"""One tokenizer in the formats of others: GGUF's vocabulary, transformers' files, llama2.c's file."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_object, shown
from llama_jax.data.tokenizers.byte_pairs import (
    BYTE_LEVEL,
    IGNORES_MERGES,
    NORMALIZERS,
    PRE_ALIASES,
    PRE_TOKENIZERS,
    merges_of,
)
from llama_jax.data.tokenizers.hugging_face import HuggingFaceTokenizer
from llama_jax.data.tokenizers.llama2c import FIRST_PIECE, Llama2cTokenizer, llama2c_file
from llama_jax.data.tokenizers.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    PieceModel,
    piece_model_bytes,
)
from llama_jax.data.tokenizers.tokenizer import Tokenizer
from llama_jax.data.tokenizers.vocabulary import Vocabulary, vocabulary_of

_FAST_CLASS = "PreTrainedTokenizerFast"
"""transformers' class that takes `tokenizer.json` as it is; others build their own from parts of it."""


def files_of_vocabulary(vocabulary: Vocabulary) -> dict[str, bytes]:
    """The files of a vocabulary from GGUF: `tokenizer.model` (llama) or `tokenizer.json` (gpt2), and settings.

    Raises:
        UserError: a field contradicts another, or the splitting into words has an unknown name.
    """
    _check(vocabulary)
    settings = _settings_files(vocabulary)
    if vocabulary.model == "llama":
        return {"tokenizer.model": _piece_model(vocabulary), **settings}
    pre = PRE_ALIASES.get(vocabulary.pre, vocabulary.pre)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted([*PRE_TOKENIZERS, *PRE_ALIASES]))
        raise UserError(f"tokenizer: splits words by {shown(vocabulary.pre)}, which is not supported; {known} are")
    return {"tokenizer.json": _json_bytes(_byte_level_json(vocabulary, pre)), **settings}


def hugging_face_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Files from which transformers' `AutoTokenizer` makes a tokenizer that gives the same ids: `tokenizer.json` and
    `tokenizer_config.json`, beside the tokenizer's own.

    Raises:
        UserError: it is of a kind that `tokenizer.json` cannot express for a LLaMA.
    """
    files = tokenizer.files()
    config = json_object(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    config.pop("auto_map", None)  # names code to run
    if isinstance(tokenizer, HuggingFaceTokenizer):
        names = {number: name for name, number in tokenizer.special_tokens.items()}
        ours = {"bos_token": names[tokenizer.bos_id], "eos_token": names[tokenizer.eos_id]}
        return files | {"tokenizer_config.json": _json_bytes({"tokenizer_class": _FAST_CLASS} | ours | config)}
    vocabulary = vocabulary_of(tokenizer)
    settings = _settings_files(vocabulary)
    ours = json_object(settings["tokenizer_config.json"], "tokenizer_config.json")
    if vocabulary.model == "llama":
        files = {"tokenizer.model": _piece_model(vocabulary)} | files
        content = _sentencepiece_json(vocabulary)
    else:
        content = _byte_level_json(vocabulary, vocabulary.pre)
    made = {"tokenizer.json": _json_bytes(content), "tokenizer_config.json": _json_bytes(ours | config)}
    return settings | files | made


def llama2c_bytes(tokenizer: Tokenizer) -> bytes:
    """The `tokenizer.bin` of a tokenizer, as karpathy/llama2.c's tokenizer.py exports it.

    Raises:
        UserError: llama2.c's format has no room for what the tokenizer does.
    """
    if isinstance(tokenizer, Llama2cTokenizer):
        return tokenizer.to_bytes()
    vocabulary = vocabulary_of(tokenizer)
    tokens, types = vocabulary.tokens, vocabulary.types
    if vocabulary.model != "llama" or not vocabulary.adds_space_prefix:
        raise UserError("tokenizer: llama2.c supports only the tokenizers of LLaMA 1 and 2, of sentencepiece's kind")
    layout = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    if [*types[:FIRST_PIECE]] != layout or (vocabulary.bos_id, vocabulary.eos_id) != (1, 2):
        raise UserError("tokenizer: llama2.c requires unk, bos and eos as tokens 0 to 2, then the 256 bytes")
    if others := [tokens[token] for token in vocabulary.stop_ids if token != vocabulary.eos_id]:
        raise UserError(f"tokenizer: answers end with {shown(others[0])} too, which llama2.c cannot express")
    for token, kind in zip(tokens[FIRST_PIECE:], types[FIRST_PIECE:], strict=True):
        if kind != NORMAL:
            raise UserError(f"tokenizer: token {shown(token)} is special, which llama2.c cannot express")
    names = [tokens[0], f"\n{tokens[1]}\n", f"\n{tokens[2]}\n", *tokens[3:]]
    pieces = [name.replace(SPACE, " ").encode() for name in names]
    return llama2c_file(zip(pieces, vocabulary.scores or (), strict=True))


def _check(vocabulary: Vocabulary) -> None:
    count = len(vocabulary.tokens)
    scores = count if vocabulary.scores is None else len(vocabulary.scores)
    if len(vocabulary.types) != count or scores != count:
        raise UserError(f"tokenizer: {count} tokens, {len(vocabulary.types)} types and {scores} scores do not agree")
    if vocabulary.eos_id is None:
        raise UserError("tokenizer: names no EOS token")
    for field, token in (("bos_id", vocabulary.bos_id), ("eos_id", vocabulary.eos_id)):
        if token is not None and not 0 <= token < count:
            raise UserError(f"tokenizer: {field} {token} is not below {count} tokens")
    token, times = Counter(vocabulary.tokens).most_common(1)[0]
    if times > 1:
        raise UserError(f"tokenizer: token {shown(token)} occurs {times} times")
    if vocabulary.model == "llama" and vocabulary.scores is None:
        raise UserError("tokenizer: has no scores, by which sentencepiece merges")
    for merge in vocabulary.merges:
        if merge.count(" ") != 1:
            raise UserError(f"tokenizer: merge {shown(merge)} is not two tokens with a space between them")


def _settings_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    def name(token: int | None) -> str | None:
        return None if token is None else vocabulary.tokens[token]

    unknown = next((number for number, kind in enumerate(vocabulary.types) if kind == UNKNOWN), None)
    config = {
        "tokenizer_class": _FAST_CLASS,
        "bos_token": name(vocabulary.bos_id),
        "eos_token": name(vocabulary.eos_id),
        "unk_token": name(unknown),
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": _chat_template(vocabulary.chat_templates),
    }
    stops = list(dict.fromkeys((vocabulary.eos_id, *vocabulary.stop_ids)))
    generation = {"bos_token_id": vocabulary.bos_id, "eos_token_id": stops}
    return {
        "tokenizer_config.json": _json_bytes({key: value for key, value in config.items() if value is not None}),
        "generation_config.json": _json_bytes({key: value for key, value in generation.items() if value is not None}),
    }


def _chat_template(templates: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """As transformers writes one template, or several with names."""
    if templates.keys() <= {"default"}:
        return templates.get("default")
    return [{"name": name, "template": template} for name, template in templates.items()]


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def _piece_model(vocabulary: Vocabulary) -> bytes:
    tokens, types, scores = vocabulary.tokens, list(vocabulary.types), vocabulary.scores or ()
    if UNKNOWN not in types:
        raise UserError("tokenizer: has no token of type 2 (unknown), which sentencepiece requires")
    bos = vocabulary.eos_id if vocabulary.bos_id is None else vocabulary.bos_id
    assert bos is not None and vocabulary.eos_id is not None
    types[bos] = types[vocabulary.eos_id] = CONTROL
    pieces = tuple(map(Piece, tokens, map(float, scores), types))
    model = PieceModel(pieces, adds_space_prefix=vocabulary.adds_space_prefix)
    return piece_model_bytes(model, unk=tokens[types.index(UNKNOWN)], bos=tokens[bos], eos=tokens[vocabulary.eos_id])


def _byte_level_json(vocabulary: Vocabulary, pre: str) -> dict[str, Any]:
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


def _sentencepiece_json(vocabulary: Vocabulary) -> dict[str, Any]:
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
