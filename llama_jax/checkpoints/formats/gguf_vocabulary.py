"""The tokenizer inside a GGUF file: the keys `tokenizer.*` to a model's tokenizer files, and back.

Source of keys and defaults: ggml-org/llama.cpp, src/llama-vocab.cpp."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_jax.checkpoints.formats.gguf_header import GgufValues
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import (
    Vocabulary,
    files_of_vocabulary,
    has_tokenizer,
    tokenizer_from_files,
    vocabulary_of,
)

_TYPES = range(1, 7)
_NORMAL, _UNKNOWN, _UNUSED = 1, 2, 5
_OPENED_WITH_BOS = ("llama3", "llama-v3", "llama-bpe")
"""Kinds of byte-level splitting that open text with BOS unless the file says otherwise."""


def vocabulary_files(values: GgufValues, vocab_size: int) -> dict[str, bytes]:
    """The tokenizer of a file, by Hugging Face's names; empty if it has none.

    Raises:
        UserError: it is of a kind no LLaMA has, or does not fit the `vocab_size` rows of the model.
    """
    model = values.text("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return {}
    if model not in ("llama", "gpt2"):
        raise UserError(f"{values.path}: tokenizer.ggml.model is {model!r:.40}; only 'llama' and 'gpt2' are read")
    tokens = values.texts("tokenizer.ggml.tokens")
    if len(tokens) != vocab_size:
        raise UserError(f"{values.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, the model {vocab_size}")
    types = [_NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in values:
        types = values.numbers("tokenizer.ggml.token_type", len(tokens), np.integer).tolist()
    for token, kind in enumerate(types):
        if kind not in _TYPES:
            raise UserError(f"{values.path}: tokenizer.ggml.token_type of token {token} is {kind}; 1 to 6 are known")
    scores = None
    if model == "llama":
        scores = values.numbers("tokenizer.ggml.scores", len(tokens), np.floating).tolist()
    pre = values.text("tokenizer.ggml.pre", "default")
    count = _without_padding(tokens, types)
    bos, eos, eot, eom = (_token(values, kind, count, model) for kind in ("bos", "eos", "eot", "eom"))
    vocabulary = Vocabulary(
        model=model,
        tokens=tokens[:count],
        types=types[:count],
        bos_id=bos,
        eos_id=eos,
        scores=scores and scores[:count],
        merges=values.texts("tokenizer.ggml.merges") if model == "gpt2" else (),
        pre=pre,
        adds_bos=values.flag("tokenizer.ggml.add_bos_token", model == "llama" or pre in _OPENED_WITH_BOS),
        adds_space_prefix=values.flag("tokenizer.ggml.add_space_prefix", model == "llama"),
        stop_ids=tuple(dict.fromkeys(token for token in (eos, eot, eom) if token is not None)),
        chat_template=values.text("tokenizer.chat_template", "") or None,
    )
    try:
        return files_of_vocabulary(vocabulary)
    except UserError as error:
        raise UserError(f"{values.path}: {error}") from None


def add_vocabulary(writer: Any, files: Mapping[str, bytes], vocab_size: int, where: str) -> None:
    """Add the keys of a tokenizer to a `gguf.GGUFWriter`; ids that the model has beyond it are marked unused.

    Args:
        where: the model, for messages.

    Raises:
        UserError: the files are not a tokenizer, or are one of more than `vocab_size` tokens.
    """
    if not has_tokenizer(files):
        writer.add_tokenizer_model("none")
        return
    vocabulary = vocabulary_of(tokenizer_from_files(files, where))
    missing = range(len(vocabulary.tokens), vocab_size)
    if len(vocabulary.tokens) > vocab_size:
        raise UserError(f"{where}: the tokenizer has {len(vocabulary.tokens)} tokens, the model {vocab_size}")
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list([*vocabulary.tokens, *map(_padding, missing)])
    writer.add_token_types([*vocabulary.types, *(_UNUSED for _ in missing)])
    if vocabulary.scores is not None:
        writer.add_token_scores([*vocabulary.scores, *(-1000.0 for _ in missing)])
    if vocabulary.model == "gpt2":
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.eos_id is not None:
        writer.add_eos_token_id(vocabulary.eos_id)
    if _UNKNOWN in vocabulary.types:
        writer.add_unk_token_id(vocabulary.types.index(_UNKNOWN))
    ends: dict[str, int] = {}
    for token in vocabulary.stop_ids:
        end = "eom" if vocabulary.tokens[token] == "<|eom_id|>" else "eot"
        # Only the first of each has a key; llama.cpp finds the other usual ones by their names.
        if token != vocabulary.eos_id and ends.setdefault(end, token) == token:
            writer.add_uint32(f"tokenizer.ggml.{end}_token_id", token)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(vocabulary.adds_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _token(values: GgufValues, kind: str, count: int, model: str) -> int | None:
    key = f"tokenizer.ggml.{kind}_token_id"
    if key not in values:
        return {"bos": 1, "eos": 2}.get(kind) if model == "llama" else None
    return values.token(key, count)


def _padding(token: int) -> str:
    """llama.cpp's name for an id that is not a token of any text."""
    return f"[PAD{token}]"


def _without_padding(tokens: list[str], types: list[int]) -> int:
    """How many tokens there are without those that only fill the model's table."""
    count = len(tokens)
    while count and types[count - 1] == _UNUSED and tokens[count - 1] == _padding(count - 1):
        count -= 1
    return count
