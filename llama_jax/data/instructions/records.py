"""Records of instruction data sets to conversations: which fields each format has, and what makes a record good.
Independent of templates and tokens."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from llama_jax.core.errors import UserError, nearest
from llama_jax.data.config import RecordFormat
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.record_text import Record, good_text, kind_of

Role: TypeAlias = Literal["system", "user", "assistant"]

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
_KEYS = (("role", "content"), ("from", "value"))
_LEARNED = {"weight": "0 or 1", "train": "true or false"}
"""Fields of a turn that say whether it is learned (OpenAI's, Axolotl's), and their values."""
_MOST_FIELDS_SHOWN = 8


class Turn(NamedTuple):
    """What one side says."""

    role: Role
    content: str
    input: str = ""
    """Alpaca's second field beside the instruction, of a user turn."""
    is_learned: bool = True
    """Of an assistant's turn: whether it is an answer to learn, not one that is given."""
    reasoning: str = ""
    """What an assistant thinks before it speaks: `reasoning_content`."""


Conversation: TypeAlias = tuple[Turn, ...]
"""One system turn or none, then user and assistant in turn; it ends with an assistant's."""


def conversation_of(record: Record, form: RecordFormat) -> Conversation | str:
    """The conversation in a record, or the text where the format is `text`.

    A last turn that nobody answers is left out, and so is a first turn of the assistant's, which answers nothing (as
    FastChat does with ShareGPT's). A system turn without anything in it is none.

    Raises:
        BadRecordError: a field is missing or is not text, or there is no answer.
    """
    return _READERS[form](record)


def format_of(fields: Iterable[str]) -> RecordFormat | None:
    """The format whose fields are all there; None when no format's are."""
    names = set(fields)
    return next((form for form, needed in _FIELDS.items() if needed <= names), None)


def unknown_format(source: str, fields: Sequence[str]) -> UserError:
    """The error for a source whose records have an unknown format."""
    shown = ", ".join(f"{field:.40}" for field in fields[:_MOST_FIELDS_SHOWN]) or "no field"
    known = "; ".join(f"{form}: {', '.join(sorted(needed))}" for form, needed in _FIELDS.items())
    return UserError(f"data.source: {source}: records have {shown}, which is not a known format ({known})")


_FIELDS: Mapping[RecordFormat, set[str]] = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "alpaca": {"instruction", "output"},
    "prompt_completion": {"prompt", "completion"},
    "text": {"text"},
}
"""By these fields a format is known; the first that fits is taken, as some sets bring the finished text along."""


def _alpaca(record: Record) -> Conversation:
    place, values = record
    turns = _system_turn(record)
    for number, pair in enumerate(_optional_list(values.get("history"), "history", place)):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecordError("wrong_type", place, f"history[{number}] is not a pair of question and answer")
        turns += [
            Turn("user", good_text(pair[0], f"history[{number}][0]", place)),
            Turn("assistant", good_text(pair[1], f"history[{number}][1]", place)),
        ]
    given = values.get("input")
    # Alpaca lays a record out as one without input where it is exactly "".
    given = "" if given is None or given == "" else _text(given, "input", place)
    question = Turn("user", _field(record, "instruction"), given)
    return (*turns, question, Turn("assistant", _field(record, "output")))


def _listed(record: Record, field: str) -> Conversation:
    return checked_conversation([*_system_turn(record), *listed_turns(record, field)], record.place)


def _prompt_completion(record: Record) -> Conversation:
    place, values = record
    if not isinstance(values.get("prompt"), list) and not isinstance(values.get("completion"), list):
        question = Turn("user", _field(record, "prompt"))
        return (*_system_turn(record), question, Turn("assistant", _field(record, "completion")))
    prompt = [turn._replace(is_learned=turn.role != "assistant") for turn in listed_turns(record, "prompt")]
    return checked_conversation([*_system_turn(record), *prompt, *listed_turns(record, "completion")], place)


_READERS: Mapping[RecordFormat, Callable[[Record], Conversation | str]] = {
    "alpaca": _alpaca,
    "sharegpt": lambda record: _listed(record, "conversations"),
    "messages": lambda record: _listed(record, "messages"),
    "prompt_completion": _prompt_completion,
    "text": lambda record: _field(record, "text"),
}


def checked_conversation(turns: list[Turn], place: str) -> Conversation:
    """The turns, if they make a conversation with an answer; see `conversation_of`.

    Raises:
        BadRecordError: they do not.
    """
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRecordError("no_answer", place, "has no turn of an assistant, so there is nothing to learn")
    system = [turn for turn in turns if turn.role == "system"]
    said = [turn for turn in turns if turn.role != "system"]
    if len(system) > 1 or (system and turns[0].role != "system"):
        raise BadRecordError("turns", place, "has a system turn that is not the first")
    if said[0].role == "assistant":
        said = said[1:]
    if said and said[-1].role == "user":
        said = said[:-1]
    if not any(turn.role == "assistant" and turn.is_learned for turn in said):
        raise BadRecordError("no_answer", place, "has no answer to a user, so there is nothing to learn")
    for number, (first, second) in enumerate(itertools.pairwise(said)):
        if first.role == second.role:
            message = f"{first.role} speaks twice in a row, in turns {number + 1} and {number + 2}"
            raise BadRecordError("turns", place, message)
    return (*system, *said)


def listed_turns(record: Record, field: str) -> list[Turn]:
    """The turns in a list of objects, or in an object of lists, as columns of such objects are stored by some.

    Raises:
        BadRecordError: there is no such list, or one of them is no turn.
    """
    value = record.values.get(field)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        if field not in record.values:
            raise _missing(record, field)
        if value is None:
            raise BadRecordError("null_field", record.place, f"field '{field}' is null; it must be a list")
        message = f"field '{field}' is of type {kind_of(value)}; it must be a list"
        raise BadRecordError("wrong_type", record.place, message)
    if not value:
        raise BadRecordError("empty", record.place, f"field '{field}' is empty; remove the record")
    turns = (turn_of(each, f"{field}[{number}]", record.place) for number, each in enumerate(value))
    return [turn for turn in turns if turn is not None]


def turn_of(value: Any, name: str, place: str) -> Turn | None:
    """The turn that an object is, called `name`; None of a system turn that says nothing.

    Raises:
        BadRecordError: it is none.
    """
    if not isinstance(value, dict):
        raise BadRecordError("wrong_type", place, f"{name} is of type {kind_of(value)}; it must be an object")
    keys = next((keys for keys in _KEYS if keys[0] in value), None)
    if keys is None or keys[1] not in value:
        missing = "role" if keys is None else keys[1]
        raise BadRecordError("missing_field", place, f"{name} has no field '{missing}'{nearest(missing, value)}")
    role, content = value[keys[0]], value[keys[1]]
    if not isinstance(role, str):
        raise BadRecordError("wrong_type", place, f"{name}.{keys[0]} is of type {kind_of(role)}; it must be a string")
    if role not in _ROLES:
        message = f"{name}.{keys[0]} is '{role:.40}'; known are {', '.join(_ROLES)}"
        raise BadRecordError("unknown_role", place, message)
    if _ROLES[role] == "system" and _is_blank(content):
        return None
    is_learned = _is_learned(value, name, place) or _ROLES[role] != "assistant"
    reasoning = value.get("reasoning_content")
    reasoning = "" if reasoning is None else _text(reasoning, f"{name}.reasoning_content", place)
    return Turn(_ROLES[role], good_text(content, f"{name}.{keys[1]}", place), "", is_learned, reasoning)


def _is_learned(turn: Mapping[str, Any], name: str, place: str) -> bool:
    said = {field: turn[field] for field in _LEARNED if turn.get(field) is not None}
    for field, value in said.items():
        if value not in (0, 1):
            raise BadRecordError("wrong_type", place, f"{name}.{field} must be {_LEARNED[field]}")
    if len(set(said.values())) > 1:
        both = " and ".join(f"{field} {json.dumps(value)}" for field, value in said.items())
        raise BadRecordError("contradiction", place, f"{name} has {both}, which contradict each other")
    return all(said.values())


def _system_turn(record: Record) -> list[Turn]:
    value = record.values.get("system")
    return [] if _is_blank(value) else [Turn("system", good_text(value, "system", record.place))]


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _field(record: Record, name: str) -> str:
    if name not in record.values:
        raise _missing(record, name)
    return good_text(record.values[name], name, record.place)


def _missing(record: Record, name: str) -> BadRecordError:
    fields = ", ".join(f"{field:.40}" for field in list(record.values)[:_MOST_FIELDS_SHOWN]) or "no field"
    message = f"no field '{name}'; it has {fields}{nearest(name, record.values)}"
    return BadRecordError("missing_field", record.place, message)


def _text(value: Any, name: str, place: str) -> str:
    """A text that may be blank."""
    return value if value is not None and _is_blank(value) else good_text(value, name, place)


def _optional_list(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise BadRecordError("wrong_type", place, f"field '{name}' is of type {kind_of(value)}; it must be a list")
    return cast("list[Any]", value or [])
