"""A tokenizer as GGUF stores it: one list of tokens with their scores and types."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import shown
from llama_jax.data.tokenizers.byte_pairs import PRE_TOKENIZERS, byte_characters, merges_in, merges_of, pre_name
from llama_jax.data.tokenizers.hugging_face import HuggingFaceTokenizer, component_types
from llama_jax.data.tokenizers.llama2c import FIRST_PIECE, Llama2cTokenizer
from llama_jax.data.tokenizers.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceTokenizer,
    read_piece_model,
)
from llama_jax.data.tokenizers.tiktoken_model import TiktokenTokenizer
from llama_jax.data.tokenizers.tokenizer import Tokenizer

_NEVER_MERGED = -1e9  # the score of a token that no pair of tokens makes


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer spelled out, in the terms of llama.cpp's `tokenizer.ggml.*` keys."""

    model: Literal["llama", "gpt2", "unigram"]
    """`llama`: sentencepiece's byte-pair encoding, merged by score; `gpt2`: that on bytes, merged by `merges`;
    `unigram`: sentencepiece's other kind, the likeliest pieces, which GGUF does not have for a LLaMA."""
    tokens: Sequence[str]
    """By id: with U+2581 for a space and `<0x0A>` for a byte (llama), or a character for each byte (gpt2)."""
    types: Sequence[int]
    """1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte."""
    bos_id: int | None
    eos_id: int | None
    scores: Sequence[float] | None = None
    """Of each token; None for gpt2."""
    merges: Sequence[str] = ()
    """Pairs with a space between them, the first to be merged first; only for gpt2."""
    pre: str = "default"
    """llama.cpp's name of the pattern that splits text into words; only for gpt2."""
    adds_bos: bool = True
    adds_space_prefix: bool = True
    prefixes_first_only: bool = False
    """That space is put before the first stretch of text, and before none that follows a control token. GGUF cannot
    say so."""
    charsmap: bytes = b""
    """sentencepiece's table of characters to replace before encoding (NFKC, for example); not in GGUF."""
    joins_spaces: bool = False
    """Takes spaces off at both ends, and makes several of them one, before encoding; not in GGUF."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end an answer; EOS may be among them."""
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """By name; see `Settings.chat_templates`."""


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """A tokenizer spelled out as GGUF stores it; the inverse of `files_of_vocabulary`.

    Raises:
        UserError: it is of a kind that GGUF cannot express for a LLaMA.
    """
    vocabulary = spelled_out(tokenizer)
    if vocabulary.model == "unigram":
        raise UserError(
            "tokenizer: is a Unigram model, which GGUF and llama2.c know for no LLaMA; --format hf keeps it"
        )
    if vocabulary.charsmap or vocabulary.joins_spaces:
        raise UserError("tokenizer: changes the text before encoding it (normalisation), which LLaMA's do not")
    return vocabulary


def spelled_out(tokenizer: Tokenizer) -> Vocabulary:
    """The same of tokenizers of sentencepiece that GGUF cannot express, too."""
    told = _KINDS[type(tokenizer)](tokenizer)
    with_rows = {name: told[name][: tokenizer.vocab_size] for name in ("tokens", "types", "scores") if told.get(name)}
    return Vocabulary(
        **(told | with_rows),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        adds_bos=tokenizer.adds_bos,
        stop_ids=tokenizer.stop_ids,
        chat_templates=tokenizer.settings.chat_templates,
    )


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    model = read_piece_model(tokenizer.to_bytes())
    texts, scores, types = zip(*model.pieces, strict=True)
    return {
        "model": "llama" if model.is_bpe else "unigram",
        "tokens": texts,
        "scores": scores,
        "types": types,
        "adds_space_prefix": model.adds_space_prefix,
        "charsmap": model.charsmap,
        "joins_spaces": model.joins_spaces,
    }


def _of_llama2c(tokenizer: Llama2cTokenizer) -> dict[str, Any]:
    try:
        words = [piece.decode().replace(" ", SPACE) for piece in tokenizer.pieces[FIRST_PIECE:]]
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer: token {shown(error.object)} is not UTF-8") from None
    return {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words],
        "scores": tokenizer.scores,
        "types": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(words)],
    }


def _of_tiktoken(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    characters = byte_characters()

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges = merges_of(tokenizer.ranks, tokenizer.ranks)
    return {
        "model": "gpt2",
        "tokens": [*map(spelled, tokenizer.ranks), *tokenizer.special_tokens],
        "types": [NORMAL] * len(tokenizer.ranks) + [CONTROL] * len(tokenizer.special_tokens),
        "merges": [f"{spelled(left)} {spelled(right)}" for left, right in merges],
        "pre": "llama-bpe",
        "adds_space_prefix": False,
    }


def _of_hugging_face(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    content = tokenizer.content()
    if (kind := content["model"].get("type")) != "BPE":
        raise UserError(f"tokenizer: is of type {shown(kind)}, which GGUF and llama2.c know for no LLaMA; only BPE is")
    if "Precompiled" in component_types(content.get("normalizer")):
        raise UserError("tokenizer: changes the text before encoding it (normalisation), which LLaMA's do not")
    if "ByteFallback" in component_types(content.get("decoder")):
        return _like_sentencepiece(tokenizer, content)
    pre = pre_name(content)
    if pre is None:
        raise UserError(f"tokenizer: splits text in a way that has none of the names {', '.join(PRE_TOKENIZERS)}")
    tokens, types = tokenizer.tokens_and_types()
    return {
        "model": "gpt2",
        "tokens": tokens,
        "types": types,
        "merges": [" ".join(merge) for merge in merges_in(content)],
        "pre": pre,
        "adds_space_prefix": False,
    }


_KINDS: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    SentencePieceTokenizer: _of_sentencepiece,
    Llama2cTokenizer: _of_llama2c,
    TiktokenTokenizer: _of_tiktoken,
    HuggingFaceTokenizer: _of_hugging_face,
}


def _like_sentencepiece(tokenizer: HuggingFaceTokenizer, content: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 2's kind of `tokenizer.json`, which has an order of merges in place of scores. The scores are taken from
    the `tokenizer.model` beside it where that has the same tokens."""
    tokens, types = tokenizer.tokens_and_types()
    pieces = read_piece_model(tokenizer.files().get("tokenizer.model", b"")).pieces
    if pieces and [piece.text for piece in pieces] == tokens[: len(pieces)]:
        scores = [piece.score for piece in pieces] + [0.0] * (len(tokens) - len(pieces))
        defined = [number for number, piece in enumerate(pieces) if piece.type == USER_DEFINED]
        types = [USER_DEFINED if number in defined and kind == NORMAL else kind for number, kind in enumerate(types)]
    else:
        made: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges_in(content)):
            made.setdefault(left + right, rank)
        scores = [-float(made[token]) if token in made else _NEVER_MERGED for token in tokens]
        scores = [score if kind == NORMAL else 0.0 for score, kind in zip(scores, types, strict=True)]
    prepends, only_first = _space_prefix(content)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "types": types,
        "adds_space_prefix": prepends,
        "prefixes_first_only": only_first,
    }


def _space_prefix(content: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a `tokenizer.json` of Llama 2's kind puts a space before text, and before its first stretch alone."""
    if "Prepend" in component_types(content.get("normalizer")):
        return True, False
    part = content.get("pre_tokenizer") or {}
    members = part.get("pretokenizers", [part])
    schemes = {each.get("prepend_scheme", "always") for each in members if each.get("type") == "Metaspace"}
    return not schemes <= {"never"}, "always" not in schemes and "first" in schemes
