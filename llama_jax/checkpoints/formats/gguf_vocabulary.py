"""The tokenizer inside a GGUF file: the keys `tokenizer.*` to a model's tokenizer files, and back.

Source of keys and defaults: ggml-org/llama.cpp, src/llama-vocab.cpp."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
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
from llama_jax.data.tokenizers.byte_pairs import OPENS_WITH_BOS, PRE_ALIASES

_TYPES = range(1, 7)
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED = 1, 2, 3, 5
_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>"),
    *("<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<｜end▁of▁sentence｜>"),
)
"""Tokens that end an answer for llama.cpp by their names alone, but for those that only other architectures have."""
_STOP_IDS = "llama_jax.stop_token_ids"
"""All ids that end an answer: llama.cpp's own keys hold three, and it adds those of the usual names to them."""


def vocabulary_files(values: GgufValues, vocab_size: int, say: Callable[[str], None]) -> dict[str, bytes]:
    """The tokenizer of a file, by Hugging Face's names; empty if it has none.

    Args:
        say: told if the file leaves open how words are split.

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
    pre = values.text("tokenizer.ggml.pre", "")
    if model == "gpt2" and not pre:
        say(
            f"warning: {values.path} has no tokenizer.ggml.pre; words are split as llama.cpp does by default, perhaps "
            "otherwise than the model learned, so make the file anew from its source"
        )
    count = _without_padding(tokens, types)
    bos, eos = (_token(values, kind, count, model) for kind in ("bos", "eos"))
    stop_ids, control = _ends(values, tokens[:count], eos)
    types = [_CONTROL if token in control else kind for token, kind in enumerate(types)]
    vocabulary = Vocabulary(
        model=model,
        tokens=tokens[:count],
        types=types[:count],
        bos_id=bos,
        eos_id=next(iter(stop_ids), None),
        scores=scores and scores[:count],
        merges=values.texts("tokenizer.ggml.merges") if model == "gpt2" else (),
        pre=pre or "default",
        adds_bos=values.flag(
            "tokenizer.ggml.add_bos_token", model == "llama" or PRE_ALIASES.get(pre, pre) in OPENS_WITH_BOS
        ),
        adds_space_prefix=values.flag("tokenizer.ggml.add_space_prefix", model == "llama"),
        stop_ids=stop_ids,
        chat_templates=_chat_templates(values),
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
        UserError: the files are no tokenizer that GGUF can express, or the model has no row for a token that it gives.
    """
    if not has_tokenizer(files):
        writer.add_tokenizer_model("none")
        return
    tokenizer = tokenizer_from_files(files, where).for_model(vocab_size, where)
    vocabulary = vocabulary_of(tokenizer)
    missing = range(len(vocabulary.tokens), vocab_size)
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
    _add_ends(writer, vocabulary)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(vocabulary.adds_space_prefix)
    writer.add_chat_template(_self_contained(vocabulary.chat_templates, tokenizer.token_names))


def _ends(values: GgufValues, tokens: Sequence[str], eos: int | None) -> tuple[tuple[int, ...], set[int]]:
    """Ids that end an answer, and those among them that are control tokens whatever their type says. Where the file
    does not list all of them, it is llama.cpp's rule: EOS, the tokens of two keys, and those of the usual names."""
    keys = (_token(values, kind, len(tokens), "") for kind in ("eot", "eom"))
    listed, named = values.values.get(_STOP_IDS), set[int]()
    if listed is None:
        named = {token for token, name in enumerate(tokens) if name in _ENDS}
    else:
        count = len(listed) if isinstance(listed, np.ndarray) else 0
        listed = values.numbers(_STOP_IDS, count, np.integer).tolist()
        if beyond := [token for token in listed if not 0 <= token < len(tokens)]:
            raise UserError(f"{values.path}: {_STOP_IDS} has {beyond[0]}; expected one of the {len(tokens)} tokens")
    found = (eos, *(listed or ()), *keys, *sorted(named))
    return tuple(dict.fromkeys(token for token in found if token is not None)), named


def _add_ends(writer: Any, vocabulary: Vocabulary) -> None:
    """The ids that end an answer. llama.cpp has two keys for those beside EOS; tokens that it does not know by their
    names come first."""
    others = [token for token in vocabulary.stop_ids if token != vocabulary.eos_id]
    by_key: dict[str, int] = {}
    for token in sorted(others, key=lambda token: vocabulary.tokens[token] in _ENDS):
        key = "eom" if vocabulary.tokens[token] == "<|eom_id|>" or "eot" in by_key else "eot"
        by_key.setdefault(key, token)
    for key, token in by_key.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    writer.add_array(_STOP_IDS, list(vocabulary.stop_ids))


def _chat_templates(values: GgufValues) -> dict[str, str]:
    names = values.texts("tokenizer.chat_templates") if "tokenizer.chat_templates" in values else []
    keys = {"default": "tokenizer.chat_template"} | {name: f"tokenizer.chat_template.{name}" for name in names}
    found = {name: values.text(key, "") for name, key in keys.items()}
    return {name: template for name, template in found.items() if template}


def _self_contained(templates: Mapping[str, str], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Templates that spell the tokens that they call by name: llama.cpp tells them BOS and EOS alone."""

    def spelled(template: str) -> str:
        used = [
            name for name in names if name not in ("bos_token", "eos_token") and re.search(rf"\b{name}\b", template)
        ]
        # The end of the line belongs to the last block and gives no text.
        told = "".join(f"{{% set {name} = {json.dumps(names[name], ensure_ascii=False)} %}}" for name in used)
        return f"{told}\n{template}" if told else template

    return [{"name": name, "template": spelled(template)} for name, template in templates.items()]


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
