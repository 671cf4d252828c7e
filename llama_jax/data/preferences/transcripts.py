"""Conversations that are written down as one text, `Human:` and `Assistant:` before what each says: Anthropic's HH-RLHF
(each turn after an empty line) and DeepSpeed-Chat's prompts (`Human: … Assistant:`)."""

import re

from llama_jax.data.instructions.records import Turn
from llama_jax.data.sources.documents import BadRecordError

_OPENING = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ANSWER = re.compile(r"\sAssistant:")


def is_transcript(text: str) -> bool:
    """Whether a text is written so."""
    return _OPENING.match(text) is not None and "Assistant:" in text


def turns_of_transcript(text: str, field: str, place: str) -> list[Turn]:
    """The turns of a transcript; one that ends in `Assistant:` is a prompt, and one of an assistant that says nothing
    at the end of a conversation is left out.

    Raises:
        BadRecordError: a turn before the last says nothing.
    """
    pieces = _TURN.split(text.lstrip())[1:]
    said = list(zip(pieces[::2], pieces[1::2], strict=True))
    if len(said) == 1 and (answer := _ANSWER.search(said[0][1])):
        asked = said[0][1]
        said = [("Human", asked[: answer.start()]), ("Assistant", asked[answer.end() :])]
    if said and not said[-1][1].strip():
        said = said[:-1]
    turns = [Turn("user" if who == "Human" else "assistant", content.strip()) for who, content in said]
    for number, turn in enumerate(turns, 1):
        if not turn.content:
            raise BadRecordError("empty", place, f"turn {number} of field '{field}' says nothing")
    return turns
