"""Records of preference data sets to prompts and answers: which fields each format has, and what makes a record good.
Independent of templates and tokens."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from llama_jax.core.errors import UserError
from llama_jax.data.instructions.records import Conversation, Turn, checked_conversation, listed_turns, turn_of
from llama_jax.data.preferences.transcripts import is_transcript, turns_of_transcript
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.record_text import Record, good_text, kind_of

Kind: TypeAlias = Literal["pairs", "labels", "scores"]
"""What is said of answers: which of two is better, whether one is good, how good one is."""

_FIELDS: dict[Kind, set[str]] = {
    "pairs": {"chosen", "rejected"},
    "labels": {"label"},
    "scores": {"completion", "score"},
}
_PROMPTS = ("prompt", "conversations", "messages", "user_input", "instruction", "question", "input")
"""By their order; `input` beside an `instruction` is a part of that, as in Alpaca's format."""
_SAID: dict[Kind, str] = {
    "pairs": "pairs have chosen and rejected",
    "labels": "judged answers have prompt, completion and label, or messages and label",
    "scores": "scored answers have user_input or prompt, completion and score",
}
_MOST_FIELDS_SHOWN = 8
_MOST = 1e30
"""Of a score or a margin, which is kept as float32."""
_SPACE = re.compile(r"\s+")


class Compared(NamedTuple):
    """Answers to one prompt."""

    prompt: Conversation
    """Ends with a user's turn; nothing of it is learned."""
    answers: tuple[Conversation, ...]
    """The better one and the worse one, or one alone; each begins with an assistant's turn."""
    label: float
    """Margin of a pair, 0 where there is none; 1 or 0 for a good or a bad answer; score of an answer."""


def kind_of_fields(fields: Iterable[str]) -> Kind | None:
    """What is said of answers in a record with these fields; None where it is none of preferences."""
    names = set(fields)
    return next((kind for kind, needed in _FIELDS.items() if needed <= names), None)


def unknown_format(source: str, fields: Sequence[str], wanted: Kind) -> UserError:
    """The error for a source whose records are of no use for what is wanted."""
    shown = ", ".join(f"{field:.40}" for field in fields[:_MOST_FIELDS_SHOWN]) or "no field"
    usable = [_SAID[kind] for kind in _FIELDS if kind == wanted or (kind, wanted) == ("pairs", "labels")]
    return UserError(f"data.source: {source}: records have {shown}; wanted: {'; '.join(usable)}")


def compared(record: Record, kind: Kind) -> Compared:
    """What a record says.

    Raises:
        BadRecordError: a field is missing or is not what it must be. Its reason is `empty` where an answer is.
    """
    if kind == "pairs":
        prompt, answers = _prompt_and_answers(record, ("chosen", "rejected"))
        return Compared(prompt, answers, _number(record, "margin", 0.0))
    if kind == "labels":
        name = "completion" if "completion" in record.values else None
        prompt, answers = _prompt_and_answers(record, (name,)) if name else _last_answer(record)
        return Compared(prompt, answers, float(_label(record)))
    prompt, answers = _prompt_and_answers(record, ("completion",))
    return Compared(prompt, answers, _number(record, "score", None))


def shared_opening(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _prompt_and_answers(record: Record, fields: Sequence[str]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The prompt, which may be part of the answers, and the answers alone."""
    answers = [_said(record, field, "assistant") for field in fields]
    for field, turns in zip(fields, answers, strict=True):
        if not turns:  # a system's that is blank is none
            raise BadRecordError("empty", record.place, f"{field} says nothing")
    name = next((name for name in _PROMPTS if record.values.get(name) is not None), None)
    if name is None or any(turns[0].role != "assistant" for turns in answers):
        if len(answers) < 2:
            raise BadRecordError("missing_field", record.place, f"no field {' or '.join(map(repr, _PROMPTS[:3]))}")
        prompt, answers = _apart(answers)
        if not prompt:
            message = f"{' and '.join(fields)} have no prompt in common, and there is no field 'prompt'"
            raise BadRecordError("no_prompt", record.place, message)
    else:
        prompt = _said(record, name, "user")
        if name == "instruction" and (given := record.values.get("input")) not in (None, ""):
            prompt[-1] = prompt[-1]._replace(input=good_text(given, "input", record.place))
    if not prompt or prompt[-1].role != "user":
        raise BadRecordError("turns", record.place, "the prompt does not end with a user's turn")
    if (system := record.values.get("system")) is not None and prompt[0].role != "system" and str(system).strip():
        prompt = [Turn("system", good_text(system, "system", record.place)), *prompt]
    given = _given([*prompt, Turn("assistant", "answer")], record.place)
    for field, turns in zip(fields, answers, strict=True):
        if not turns or not any(turn.content.strip() for turn in turns):
            raise BadRecordError("empty", record.place, f"{field} says nothing beyond the prompt")
    whole = [checked_conversation([*given, *turns], record.place) for turns in answers]
    return given, tuple(turns[len(given) :] for turns in whole)


def _last_answer(record: Record) -> tuple[Conversation, tuple[Conversation, ...]]:
    """A conversation, of which the last turn is the answer that is judged."""
    field = next((name for name in ("messages", "conversations") if name in record.values), None)
    if field is None:
        raise BadRecordError("missing_field", record.place, "no field 'completion', and none 'messages'")
    turns = checked_conversation(listed_turns(record, field), record.place)
    return _given(turns, record.place), (turns[-1:],)


def _given(turns: Sequence[Turn], place: str) -> Conversation:
    """What comes before the last turn, of which no answer is learned."""
    before = checked_conversation(list(turns), place)[:-1]
    return tuple(turn._replace(is_learned=False) if turn.role == "assistant" else turn for turn in before)


def _said(record: Record, field: str, role: Literal["user", "assistant"]) -> list[Turn]:
    """Turns of a field: a text, a turn, a list of turns, or a transcript."""
    value = record.values.get(field)
    if isinstance(value, list):
        return listed_turns(record, field)
    if isinstance(value, dict) and not all(isinstance(column, list) for column in value.values()):
        turn = turn_of(value, field, record.place)
        return [] if turn is None else [turn]
    if isinstance(value, dict):
        return listed_turns(record, field)
    if field not in record.values:
        raise BadRecordError("missing_field", record.place, f"no field '{field}'")
    text = good_text(value, field, record.place)
    return turns_of_transcript(text, field, record.place) if is_transcript(text) else [Turn(role, text)]


def _apart(answers: Sequence[list[Turn]]) -> tuple[list[Turn], list[list[Turn]]]:
    """The opening that two conversations, or two texts, have in common, and what each says after it. That of texts is a
    user's turn of whole words; that of conversations ends with one."""
    if all(len(turns) == 1 and turns[0].role == "assistant" for turns in answers):
        texts = [turns[0].content for turns in answers]
        opening = texts[0][: shared_opening(*texts)]
        opening = opening[: max((space.end() for space in _SPACE.finditer(opening)), default=0)]
        rest = [[Turn("assistant", text[len(opening) :])] for text in texts]
        return [Turn("user", opening.strip())] * bool(opening.strip()), rest
    common = 0
    for number, (first, second) in enumerate(zip(*answers, strict=False), 1):
        if first != second:
            break
        if first.role == "user":
            common = number
    return list(answers[0][:common]), [turns[common:] for turns in answers]


def _label(record: Record) -> bool:
    value = record.values.get("label")
    if value in (0, 1):  # true and false among them
        return bool(value)
    shown = f"'{value:.40}'" if isinstance(value, str) else f"of type {kind_of(value)}"
    raise BadRecordError("wrong_type", record.place, f"field 'label' is {shown}; it must be true or false")


def _number(record: Record, field: str, default: float | None) -> float:
    value = record.values.get(field)
    if value is None and default is not None:
        return default
    if value is None:
        raise BadRecordError("no_score", record.place, f"field '{field}' is null or missing; it must be a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"field '{field}' is of type {kind_of(value)}; it must be a number"
        raise BadRecordError("wrong_type", record.place, message)
    if not -_MOST <= value <= _MOST:  # NaN neither
        raise BadRecordError("not_finite", record.place, f"field '{field}' must be a number of at most {_MOST:g}")
    return float(value)
