"""Whether a converted model has the tokenizer of its source: the same names, and the same ids for the same text."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.json_files import shown
from llama_jax.data.tokenizers import Tokenizer

_MOST_NAMES = 512


def compared_tokenizers(before: Tokenizer, after: Tokenizer, text: str, rows: int, target: str) -> dict[str, Any]:
    """What is the same, and notes on what the format cannot say.

    Args:
        before: of the source.
        after: of what was written.
        text: to encode by both: as it is, and with every control token between its lines.
        rows: of the model; it has no use for ids beyond.
        target: for messages.

    Raises:
        CannotGoOnError: a control token has another id, or text has other ids.
    """
    names = {name: token for name, token in before.whole_tokens.items() if token < rows and token != before.unk_id}
    for name, token in before.special_tokens.items():
        if name in names and after.special_tokens.get(name) != token:
            found = after.special_tokens.get(name, "none")
            raise CannotGoOnError(f"{target}: not written, token {shown(name)} is {token} in the source, {found} there")
    for field, one, other in (("BOS", before.bos_id, after.bos_id), ("EOS", before.eos_id, after.eos_id)):
        if one != other:
            raise CannotGoOnError(f"{target}: not written, {field} is {one} in the source and {other} there")
    _expect_same(before.encode(text), after.encode(text), "text", target)
    lines = text.splitlines()
    mixed = "".join(f"{name}{lines[number % len(lines)]}" for number, name in enumerate(list(names)[:_MOST_NAMES]))
    one, other = before.encode(mixed, special=True), after.encode(mixed, special=True)
    _expect_same(_those(one, names), _those(other, names), "text with control tokens", target)
    notes = []
    if one != other:
        notes.append("text that follows a control token has other ids there: the format cannot say how it is split")
    if lost := sorted(token for token in set(before.stop_ids) - set(after.stop_ids) if token < rows):
        notes.append(f"the format does not keep that {lost} end an answer")
    return {"control_tokens": len(names), "tokens_of_text": len(one), "notes": notes}


def _those(ids: Sequence[int], names: Mapping[str, int]) -> list[int]:
    wanted = set(names.values())
    return [token for token in ids if token in wanted]


def _expect_same(one: Sequence[int], other: Sequence[int], what: str, target: str) -> None:
    if one != other:
        place = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
        here, there = (shown(list(ids[place : place + 4])) for ids in (one, other))
        raise CannotGoOnError(f"{target}: not written, {what} has ids {here} in the source at {place}, {there} there")
