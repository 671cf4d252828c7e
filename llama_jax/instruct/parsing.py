"""What models write, taken apart: numbered instructions, yes or no, instances, tasks in Alpaca's list.

Labels are read in English and Chinese, with either colon. Where the papers' code would cut a text in two for what it
merely contains ("###", "20."), here it must begin a line as the format has it."""

import re
from collections.abc import Iterator, Sequence

from llama_jax.instruct.tasks import Instance, Task

_NUMBER = re.compile(r"(?:^|\n)[ \t*#]*\d+ ?(?:[.)]\**(?=\s|$)|[．、])")
_BLOCK = re.compile(
    r"(?:^|\n)\s*###\s*(?=\d+\s?[.．、])|(?:^|\n)\s*###\s*$|\n+(?=\d+\s?[.．、]\s*(?:Instruction|指令)\s?[:：])"
)
_FIELD = re.compile(r"(?:^|\n)\s*(\d+)\s?[.．、]\s*(Instruction|Input|Output|指令|输入|输出)\s?[:：]")
_EXAMPLE = re.compile(r"(?:^|\n)[ \t*#]*(?:Example|示例|例)[ \t]?\d+[ \t]*[.:：)]?[ \t*]*")
_OUTPUT = re.compile(r"(?:^|\n)[ \t*]*(?:Output|输出)[ \t]?\d*[ \t*]*[:：][ \t*]*")
_INPUT = re.compile(r"^[ \t*]*(?:Input|输入)[ \t]?\d*[ \t*]*[:：][ \t*]*")
_LABEL = re.compile(r"(?:^|\n)[ \t*]*(?:Class label|类别)[ \t*]*[:：]")
_NOTHING = ("<noinput>", "<no input>", "<无输入>", "noinput", "无输入")
_NO_INPUT = ("", "none", "none.", "n/a", "无", "无。")
_IN_ENGLISH = {"指令": "Instruction", "输入": "Input", "输出": "Output"}
_YES = re.compile(r"(?:Yes|yes|YES)\b|是的?(?=\W|$)")


def numbered_instructions(text: str, first: int, *, was_cut: bool) -> list[str]:
    """The instructions of a list that goes on with number `first`, which may be written again.

    Args:
        was_cut: The answer ended at its bound on tokens: nothing of it is used.
    """
    if was_cut:
        return []
    if not _NUMBER.match(text.lstrip()):
        text = f"{first}. {text}"
    parts = _NUMBER.split(text.strip())[1:]
    return [found for part in parts if (found := " ".join(part.split()).strip().strip("*").rstrip(":").strip())]


def says_yes(text: str) -> bool:
    """Whether an answer begins with yes; the papers' code takes the word alone, which what chats goes on from."""
    return _YES.match(text.strip()) is not None


def input_first_instances(text: str, *, was_cut: bool) -> list[Instance]:
    """Instances as `Example 1 / Input: … / Output: …`; without an example's heading there is one of them, and without
    `Output:` all is output.

    Args:
        was_cut: The answer ended at its bound on tokens: the last instance is not whole.
    """
    parts = [part for part in _EXAMPLE.split(text) if part.strip()]
    if was_cut:
        parts = parts[:-1]
    instances = []
    for part in parts:
        before, *after = _OUTPUT.split(part.strip(), maxsplit=1)
        given = _INPUT.sub("", before.strip(), count=1).strip() if after else ""
        output = after[0] if after else _INPUT.sub("", before, count=1)
        instances.append(Instance("" if given.lower() in _NO_INPUT or _is_nothing(given) else given, output.strip()))
    return instances


def output_first_instances(text: str, *, was_cut: bool) -> list[Instance]:
    """Instances as `Class label: …`, then the input, with the names of its fields."""
    parts = _LABEL.split(f"\n{text.strip()}")[1:]
    if was_cut:
        parts = parts[:-1]
    instances = []
    for part in parts:
        label, _, given = part.strip().partition("\n")
        given = _INPUT.sub("", _EXAMPLE.sub("\n", given).strip(), count=1)
        instances.append(Instance(given.strip(), label.strip()))
    return instances


def alpaca_tasks(text: str, first: int, *, was_cut: bool) -> Iterator[Task | str]:
    """The tasks of a list that goes on with `{first}. Instruction:`, which may be written again; the text of one that
    is not laid out as asked.

    Args:
        was_cut: The answer ended at its bound on tokens: the last task is not whole.
    """
    if not _FIELD.match(re.sub(r"^\s*(###)?\s*", "", text)):
        text = f"{first}. Instruction: {text.lstrip()}"
    blocks = [block.strip() for block in _BLOCK.split(text) if block.strip()]
    for block in blocks[:-1] if was_cut else blocks:
        yield _alpaca_task(block)


def _alpaca_task(block: str) -> Task | str:
    pieces = _FIELD.split(block)
    numbers, labels, texts = pieces[1::3], pieces[2::3], [piece.strip() for piece in pieces[3::3]]
    if pieces[0].strip() or not _are_fields(labels) or len(set(numbers)) != 1:
        return block
    instruction, given, output = texts
    return Task(instruction, (Instance("" if _is_nothing(given) else given, output),))


def _are_fields(labels: Sequence[str]) -> bool:
    # The first may be English where a Chinese list went on without writing it again.
    return [_IN_ENGLISH.get(label, label) for label in labels] == list(_IN_ENGLISH.values())


def _is_nothing(text: str) -> bool:
    return text.strip().lower() in _NOTHING
