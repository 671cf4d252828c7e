"""One tokenizer in the formats of others: GGUF's vocabulary, transformers' files, llama2.c's file."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_bytes, shown
from llama_jax.data.tokenizers.added_tokens import tokens_beside
from llama_jax.data.tokenizers.byte_pairs import PRE_ALIASES, PRE_TOKENIZERS
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
    SentencePieceTokenizer,
    piece_model_bytes,
    read_piece_model,
)
from llama_jax.data.tokenizers.settings import ADDED_TOKENS_FILE, Settings, read_settings, settings_file
from llama_jax.data.tokenizers.tokenizer import Tokenizer
from llama_jax.data.tokenizers.tokenizer_json import byte_level_json, opening, sentencepiece_json
from llama_jax.data.tokenizers.vocabulary import Vocabulary, spelled_out, vocabulary_of

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
    return {"tokenizer.json": json_bytes(byte_level_json(vocabulary, pre)), **settings}


def hugging_face_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Files from which transformers' `AutoTokenizer` makes a tokenizer that gives the same ids: `tokenizer.json` and
    `tokenizer_config.json`, beside the tokenizer's own.

    Raises:
        UserError: it is of a kind that `tokenizer.json` cannot express for a LLaMA.
    """
    files = tokenizer.files()
    config = settings_file(files)
    # Other classes than this one would change what the file says, `auto_map` names code to run, and null is not the
    # same as nothing: of `add_bos_token` it means that no text gets BOS.
    config = {name: value for name, value in config.items() if value is not None and name != "auto_map"}
    config["tokenizer_class"] = _FAST_CLASS
    if isinstance(tokenizer, HuggingFaceTokenizer):
        names = {number: name for name, number in tokenizer.special_tokens.items()}
        ours = {"bos_token": names[tokenizer.bos_id], "eos_token": names[tokenizer.eos_id]}
        return files | {"tokenizer_config.json": json_bytes(ours | config)}
    vocabulary = spelled_out(tokenizer)
    settings = _settings_files(vocabulary)
    ours = settings_file(settings)
    if vocabulary.model != "gpt2":
        files = files if "tokenizer.model" in files else {"tokenizer.model": _piece_model(vocabulary)} | files
        content = sentencepiece_json(vocabulary)
    else:
        content = byte_level_json(vocabulary, vocabulary.pre)
    made = {"tokenizer.json": json_bytes(content), "tokenizer_config.json": json_bytes(ours | config)}
    return settings | files | made


def meta_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Its files for Meta's code, which knows `tokenizer.model` alone: in one of sentencepiece are the tokens too that
    stood beside it, as the model has rows for them."""
    files = tokenizer.files()
    if not isinstance(tokenizer, HuggingFaceTokenizer) or "tokenizer.model" not in files:
        return files
    try:
        vocabulary = vocabulary_of(tokenizer)
    except UserError:  # Meta has no such tokenizers
        return files
    if vocabulary.model != "llama" or tokenizer.vocab_size == len(read_piece_model(files["tokenizer.model"]).pieces):
        return files
    return files | {"tokenizer.model": _piece_model(vocabulary)}


def files_with_tokens_beside(model: bytes, beside: Mapping[str, bytes]) -> dict[str, bytes] | None:
    """A sentencepiece model and the files beside it as `tokenizer.json` and these, if they say more than it does: more
    tokens, or that a space is put before the first stretch of text alone, as transformers has it. Else None.

    Raises:
        ValueError: this is not a sentencepiece model.
        UserError: a file is malformed, or contradicts the model.
    """
    config = settings_file(beside)
    if not config and not {ADDED_TOKENS_FILE, "special_tokens_map.json"} & beside.keys():
        return None
    own = spelled_out(SentencePieceTokenizer(model))
    known = {token: number for number, token in enumerate(own.tokens)}
    tokens = [
        token
        for token in tokens_beside(beside, known, len(known), "tokenizer.model")
        if not _is_said(own, token["id"], special=token["special"])
    ]
    is_llama = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    prefixes = own.adds_space_prefix and not (is_llama and config.get("add_prefix_space") is False)
    only_first = prefixes and not config.get("legacy", not is_llama)
    if not tokens and prefixes == own.adds_space_prefix and not only_first:
        return None
    content = sentencepiece_json(replace(own, adds_space_prefix=prefixes, prefixes_first_only=only_first))
    # Looked for in the text as it is: in what is encoded, a space may have been put before it.
    added = {token["id"]: token | {"normalized": False} for token in [*content["added_tokens"], *tokens]}
    content["added_tokens"] = [added[number] for number in sorted(added)]
    names = _bos_and_eos(own, read_settings(beside))
    opens = [token for token in added.values() if token["content"] == names["bos_token"]]
    has_opening = opens and config.get("add_bos_token") is not False
    content["post_processor"] = opening(names["bos_token"], opens[0]["id"]) if has_opening else None
    made = {"tokenizer.json": json_bytes(content), "tokenizer_config.json": json_bytes(config | names)}
    return {**beside, "tokenizer.model": model, **made}


def _is_said(vocabulary: Vocabulary, token: int, *, special: bool) -> bool:
    """Whether the vocabulary itself has this token as one that is not made of others."""
    kind = vocabulary.types[token] if token < len(vocabulary.types) else None
    return kind in (UNKNOWN, CONTROL) or (kind == USER_DEFINED and not special)


def _bos_and_eos(vocabulary: Vocabulary, settings: Settings) -> dict[str, str]:
    """Their names: those of the settings, or those of the model."""
    bos, eos = (vocabulary.tokens[number or 0] for number in (vocabulary.bos_id, vocabulary.eos_id))
    return {"bos_token": settings.bos_token or bos, "eos_token": settings.eos_token or eos}


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
        "tokenizer_config.json": json_bytes({key: value for key, value in config.items() if value is not None}),
        "generation_config.json": json_bytes({key: value for key, value in generation.items() if value is not None}),
    }


def _chat_template(templates: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """As transformers writes one template, or several with names."""
    if templates.keys() <= {"default"}:
        return templates.get("default")
    return [{"name": name, "template": template} for name, template in templates.items()]


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
