"""The configuration files beside a tokenizer: BOS and EOS, ids that end an answer, the chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_object, shown

SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
"""Names of the files that travel with a tokenizer, as transformers writes them."""


@dataclass(frozen=True)
class Settings:
    """What the files say; None, or empty, where they say nothing."""

    bos_token: str | None = None
    eos_token: str | None = None
    adds_bos: bool | None = None
    stop_ids: tuple[int, ...] = ()
    """End an answer, besides EOS."""
    chat_template: str | None = None


def read_settings(files: Mapping[str, bytes]) -> Settings:
    """Read those of `SETTINGS_FILES` that are there.

    Raises:
        UserError: one is not a JSON object, or a field has the wrong type.
    """
    config, names, generation = (
        json_object(files.get(name, b"{}"), name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    )
    adds_bos = config.get("add_bos_token")
    if not isinstance(adds_bos, bool | None):
        raise UserError(f"tokenizer_config.json: add_bos_token {shown(adds_bos)} is not true, false or null")
    bos, eos = (
        _token(config, "tokenizer_config.json", field) or _token(names, "special_tokens_map.json", field)
        for field in ("bos_token", "eos_token")
    )
    return Settings(
        bos_token=bos,
        eos_token=eos,
        adds_bos=adds_bos,
        stop_ids=_stop_ids(generation.get("eos_token_id")),
        chat_template=_chat_template(files, config),
    )


def _token(config: Mapping[str, Any], file: str, field: str) -> str | None:
    """The name of a token, which some files wrap in an object with flags."""
    value = config.get(field)
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str | None):
        raise UserError(f"{file}: {field} {shown(value)} is not the name of a token")
    return value


def _stop_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > 1024 or not all(type(token) is int and token >= 0 for token in ids):
        raise UserError(f"generation_config.json: eos_token_id {shown(value)} is not an id or a list of ids")
    return tuple(ids)


def _chat_template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja` wins over the field; of several named templates, the one called default."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError:
            raise UserError("chat_template.jinja: not UTF-8") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if not isinstance(template, str | None):
        raise UserError(f"tokenizer_config.json: chat_template {shown(template)} is not a template")
    return template
