"""Tokens that only the files beside a tokenizer know: `added_tokens_decoder` of `tokenizer_config.json`,
`added_tokens.json`, and tokens that are named there for a use, as padding.

Their ids are those that transformers gives them: what is stated must be the next free id, what is only named gets it.
A token that two files say otherwise is refused (transformers takes one of them)."""

from collections.abc import Iterator, Mapping
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import shown
from llama_jax.data.tokenizers.settings import (
    ADDED_TOKENS_FILE,
    ALWAYS_NAMES,
    NAMES_FILE,
    TOKEN_LISTS,
    read_settings,
    settings_file,
)

_DECODER = "added_tokens_decoder of tokenizer_config.json"
_NAMED = tuple(name for name in ALWAYS_NAMES if name not in ("bos_token", "eos_token"))
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MOST_TOKENS = 2**22


def tokens_beside(files: Mapping[str, bytes], known: Mapping[str, int], size: int, where: str) -> list[dict[str, Any]]:
    """The tokens that files state beside a tokenizer, known ones among them, by id, as `tokenizer.json` lists them:
    `id`, `content`, and how they are found in text.

    Args:
        files: beside the tokenizer, by name.
        known: ids of the tokenizer's own tokens.
        size: the id that the next new token gets.
        where: the tokenizer's file, for messages.

    Raises:
        UserError: a file is malformed, or a token is not where it is stated to be.
    """
    stated, source = _stated_tokens(files)
    ids, made = dict(known), []
    for number, token in sorted(stated.items()):
        found = ids.setdefault(token["content"], size)
        size = max(size, found + 1)
        if found != number:
            told = f"which is {found} in {where}" if token["content"] in known else f"{found} is next"
            raise UserError(f"{source}: has {shown(token['content'])} as {number}, {told}")
        made.append(token | {"id": number})
    for token in _named_tokens(files):
        if token["content"] not in ids:
            ids[token["content"]] = size
            made.append(token | {"id": size})
            size += 1
    return made


def stated_names(files: Mapping[str, bytes]) -> dict[int, str]:
    """The names that files beside a tokenizer state by id; see `tokens_beside`."""
    return {number: token["content"] for number, token in _stated_tokens(files)[0].items()}


def _stated_tokens(files: Mapping[str, bytes]) -> tuple[dict[int, dict[str, Any]], str]:
    """The tokens whose ids are stated, and where: in `added_tokens_decoder`, or else in `added_tokens.json`."""
    listed = settings_file(files, ADDED_TOKENS_FILE)
    for content, number in listed.items():
        if not content or type(number) is not int or not 0 <= number < MOST_TOKENS:
            raise UserError(f"{ADDED_TOKENS_FILE}: {shown(content)} is {shown(number)}; names with ids are expected")
    config = settings_file(files)
    if config.get("added_tokens_decoder") is not None:
        stated = _decoder_tokens(config["added_tokens_decoder"])
        for content, number in listed.items():
            if stated.get(number, {}).get("content") != content:
                raise UserError(f"{ADDED_TOKENS_FILE}: has {shown(content)} as {number}, unlike {_DECODER}")
        return stated, _DECODER
    settings = read_settings(files)
    named = {settings.bos_token, settings.eos_token, *(token["content"] for token in _named_tokens(files))}
    template = "\n".join(settings.chat_templates.values())
    stated = {}
    for content, number in listed.items():
        if number in stated:
            both = f"{shown(stated[number]['content'])} and {shown(content)}"
            raise UserError(f"{ADDED_TOKENS_FILE}: has {both} as {number}")
        # It does not tell which are control tokens. One that a template writes is, so that no message can write it.
        stated[number] = _entry(content, {"special": content in named or content in template})
    return stated, ADDED_TOKENS_FILE


def _decoder_tokens(decoder: Any) -> dict[int, dict[str, Any]]:
    """The tokens of `added_tokens_decoder` by id."""
    if not isinstance(decoder, dict):
        raise UserError(f"{_DECODER}: is {shown(decoder)}; an object of ids and tokens is expected")
    made: dict[int, dict[str, Any]] = {}
    for number, token in decoder.items():
        if not (number.isascii() and number.isdigit() and len(number) < 8):
            raise UserError(f"{_DECODER}: has the id {shown(number)}, which is not one of a token")
        made[int(number)] = _entry_of(token, f"{_DECODER}: {number}", special=False)
    return made


def _named_tokens(files: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """Tokens that have a use, in the order in which transformers adds those that are not in the vocabulary. BOS and EOS
    are not among them: a tokenizer that lacks these is told by their name to be another one."""
    config, names = settings_file(files), settings_file(files, NAMES_FILE)
    if config.get("added_tokens_decoder") is not None:
        names = {}  # transformers does not read it then
    for field in _NAMED:
        if value := names.get(field) or config.get(field):
            yield _entry_of(value, f"tokenizer_config.json: {field}", special=True)
    extra = next((found[field] for found in (names, config) for field in TOKEN_LISTS if found.get(field)), [])
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise UserError(f"tokenizer_config.json: {TOKEN_LISTS[0]} {shown(extra)} is not a list of tokens")
    for value in extra:
        yield _entry_of(value, f"tokenizer_config.json: {TOKEN_LISTS[0]}", special=True)


def _entry_of(token: Any, where: str, *, special: bool) -> dict[str, Any]:
    """A token that is written as its name, or as an object with flags."""
    fields = token if isinstance(token, dict) else {"content": token}
    content, flags = fields.get("content"), {name: fields[name] for name in _FLAGS if fields.get(name) is not None}
    if not isinstance(content, str) or not content or not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{where}: {shown(token)} is not a token")
    return _entry(content, {"special": special} | flags)


def _entry(content: str, flags: Mapping[str, bool]) -> dict[str, Any]:
    plain = dict.fromkeys(_FLAGS, False) | {"normalized": not flags["special"]}
    return {"id": None, "content": content, **plain, **flags}
