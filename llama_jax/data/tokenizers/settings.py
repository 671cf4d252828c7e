"""The configuration files beside a tokenizer: names of its tokens, ids that end an answer, chat templates."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_bytes, json_object, shown

CONFIG_FILE, NAMES_FILE = "tokenizer_config.json", "special_tokens_map.json"
_GENERATION = "generation_config.json"
_TEMPLATE = "chat_template.jinja"
ADDED_TOKENS_FILE = "added_tokens.json"
SETTINGS_FILES = (CONFIG_FILE, NAMES_FILE, ADDED_TOKENS_FILE, _TEMPLATE, _GENERATION)
"""Names of the files that travel with a tokenizer, as transformers writes them."""

ALWAYS_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Fields that name a token, or none."""
TOKEN_LISTS = ("extra_special_tokens", "additional_special_tokens")
"""Fields that list further tokens, under their newer name and their older one."""


@dataclass(frozen=True)
class Settings:
    """What the files say; None, or empty, where they say nothing."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Tokens by what templates call them: `bos_token`, `pad_token`, and what else a model names so."""
    special_names: tuple[str, ...] = ()
    """All tokens that are said to be special."""
    adds_bos: bool | None = None
    stop_ids: tuple[int, ...] = ()
    """End an answer, besides EOS."""
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """By name; a single one is called default."""

    @property
    def bos_token(self) -> str | None:
        return self.names.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.names.get("eos_token")


def read_settings(files: Mapping[str, bytes]) -> Settings:
    """Read those of `SETTINGS_FILES` that are there.

    Raises:
        UserError: one is not a JSON object, or a field has the wrong type.
    """
    config, names, generation = (settings_file(files, name) for name in (CONFIG_FILE, NAMES_FILE, _GENERATION))
    adds_bos = config.get("add_bos_token")
    if not isinstance(adds_bos, bool | None):
        raise UserError(f"{CONFIG_FILE}: add_bos_token {shown(adds_bos)} is not true, false or null")
    # As transformers reads them: the older file wins where the newer one does not list the added tokens itself.
    by_file = (
        {CONFIG_FILE: config, NAMES_FILE: names}
        if "added_tokens_decoder" in config
        else {NAMES_FILE: names, CONFIG_FILE: config}
    )
    named: dict[str, str] = {}
    listed: list[str] = []
    for file, values in by_file.items():
        named = {**_named_tokens(values, file), **named}
        listed += _listed_tokens(values)
    return Settings(
        names=named,
        special_names=tuple(dict.fromkeys((*named.values(), *listed))),
        adds_bos=adds_bos,
        stop_ids=stop_ids_of(generation, _GENERATION),
        chat_templates=_chat_templates(files, config),
    )


def settings_file(files: Mapping[str, bytes], name: str = CONFIG_FILE) -> dict[str, Any]:
    """What one of the files says, nothing where it is not there.

    Raises:
        UserError: it is not a JSON object.
    """
    return json_object(files.get(name, b"{}"), name)


def stop_ids_of(values: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The ids that end an answer, as `generation_config.json` and `config.json` say it: a number or a list of them.

    Args:
        values: the content of the file.
        where: the file, for messages.

    Raises:
        UserError: they are no ids.
    """
    value = values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > 1024 or not all(type(token) is int and token >= 0 for token in ids):
        raise UserError(f"{where}: eos_token_id {shown(value)} is not an id or a list of ids")
    return tuple(ids)


def with_stop_ids(files: Mapping[str, bytes], stop_ids: Sequence[int]) -> dict[str, bytes]:
    """The files of a tokenizer, with a `generation_config.json` that says where an answer ends; what else it says is
    kept."""
    generation = settings_file(files, _GENERATION)
    if {*stop_ids_of(generation, _GENERATION)} == {*stop_ids}:
        return dict(files)
    generation["eos_token_id"] = list(stop_ids)
    return {**files, _GENERATION: json.dumps(generation, indent=2).encode() + b"\n"}


def with_padding_token(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """The files of a tokenizer, with this token for padding."""
    made = dict(files)
    for file in (CONFIG_FILE, NAMES_FILE):
        if file == CONFIG_FILE or "pad_token" in settings_file(files, file):
            made[file] = json_bytes(settings_file(files, file) | {"pad_token": name})
    return made


def with_named_templates(files: Mapping[str, bytes], named: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a tokenizer, with further chat templates by name. transformers keeps these in files of their own,
    which win over the field in `tokenizer_config.json`; here they become that field.

    Raises:
        UserError: a template is not UTF-8.
    """
    if not named:
        return dict(files)
    config = settings_file(files, CONFIG_FILE)
    templates = {"default": files[_TEMPLATE]} if _TEMPLATE in files else {}
    templates |= named
    config["chat_template"] = [
        {"name": name, "template": _utf8(content, f"chat template {name}")} for name, content in templates.items()
    ]
    kept = {name: content for name, content in files.items() if name != _TEMPLATE}
    return {**kept, CONFIG_FILE: json_bytes(config)}


def _named_tokens(values: Mapping[str, Any], file: str) -> dict[str, str]:
    """Names of tokens by field; some files wrap a name in an object with flags."""
    extra = values.get(TOKEN_LISTS[0])
    fields = {name: value for name, value in values.items() if name.endswith("_token")}
    fields |= extra if isinstance(extra, dict) else {}
    found: dict[str, str] = {}
    for name, value in fields.items():
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str) and content:
            found[name] = content
        elif content not in (None, "") and name in ALWAYS_NAMES:
            raise UserError(f"{file}: {name} {shown(value)} is not the name of a token")
    return found


def _listed_tokens(values: Mapping[str, Any]) -> list[str]:
    lists = [values[field] for field in TOKEN_LISTS if isinstance(values.get(field), list)]
    tokens = [token.get("content") if isinstance(token, dict) else token for each in lists for token in each]
    return [token for token in tokens if isinstance(token, str) and token]


def _chat_templates(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template.jinja` wins over the field."""
    if _TEMPLATE in files:
        return {"default": _utf8(files[_TEMPLATE], _TEMPLATE)}
    value = config.get("chat_template")
    found: Any = {} if value is None else {"default": value} if isinstance(value, str) else value
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        found = {each.get("name"): each.get("template") for each in value}
    if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise UserError(
            f"{CONFIG_FILE}: chat_template {shown(value)} is not a template, nor are they templates with names"
        )
    return found


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8") from None
