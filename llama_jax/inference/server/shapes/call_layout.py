"""How a model writes calls of functions, and how conversations with calls are told to a model whose template knows
none."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.data.chat import ChatTemplate
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.tokenizer import names_pattern


@dataclass(frozen=True)
class CallLayout:
    """A call is `opening`, the name of the function, `middle`, its arguments as a JSON object, `closing`."""

    opening: str
    middle: str
    closing: str
    between: str | None
    """What stands between two calls; None: an answer has one at most."""
    by_template: bool = False
    """Whether the chat template lays out functions, calls and what they gave."""

    @property
    def mark(self) -> str:
        """What in an answer says that a call begins; empty: only what an answer begins with can be one."""
        return self.opening.partition("{")[0].rstrip()

    @property
    def rest(self) -> str:
        """What follows the mark, up to the name."""
        return self.opening.removeprefix(self.mark)

    def written(self, name: str, arguments: str) -> str:
        """A call as text."""
        return f"{self.opening}{name}{self.middle}{arguments}{self.closing}"


# As Hermes 2 Pro's and Qwen 2.5's templates have it.
PLAIN = CallLayout('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
_RESULT = "<tool_response>\n{}\n</tool_response>"


def layout_of(tokenizer: Tokenizer) -> CallLayout | None:
    """How the model's chat template writes calls, seen by having it write some; `PLAIN` where it knows none.

    Returns:
        None where it writes them otherwise than by a name and a JSON object behind it.
    """
    source = tokenizer.chat_template
    if source is None or not re.search(r"\btools\b", source):
        return PLAIN
    name, arguments = "probe_function", {"probe": "value"}
    written = json.dumps(arguments)
    function = {"name": name, "description": "probe", "parameters": {"type": "object", "properties": {}}}
    template = ChatTemplate(source, tokenizer.token_names)

    def after_question(calls: int) -> str:
        call = {"type": "function", "id": "probe0000", "function": {"name": name, "arguments": arguments}}
        asked = [{"role": "user", "content": "probe"}]
        answered = [*asked, {"role": "assistant", "content": "", "tool_calls": [call] * calls}]
        tools = [{"type": "function", "function": function}]
        question = template.render(asked, tools=tools)
        whole = template.render(answered, tools=tools, add_generation_prompt=False)
        return whole.removeprefix(question).lstrip() if whole.startswith(question) else ""

    controls = names_pattern(tokenizer.special_tokens)
    pieces = re.escape(name), re.escape(written)
    try:
        one = re.fullmatch("(.*?){}(.*?){}(.*)".format(*pieces), after_question(1), re.DOTALL)
        if one is None or controls.search(one[1] + one[2]):
            return None
        opening, middle, closing = one[1], one[2], controls.split(one[3])[0].rstrip()
    except UserError:
        return None
    try:
        two = after_question(2).removeprefix(f"{opening}{name}{middle}{written}{closing}")
    except UserError:  # some write one call at most, and say so
        two = ""
    between, found, _ = two.partition(f"{opening}{name}{middle}{written}{closing}")
    return CallLayout(opening, middle, closing, between if found and not controls.search(between) else None, True)


def with_calls_as_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A conversation for a template that knows no tools: the system is told of them, and what was called, and what
    that gave, is what the assistant and the user said."""
    told = [*_without_calls(messages)]
    if not tools:
        return told
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = PLAIN.written("NAME", "ARGUMENTS")
    text = f"You can call these functions:\n{described}\nTo call one, answer with\n{example}\nwhere ARGUMENTS is JSON."
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _without_calls(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(_RESULT.format(message["content"]))
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        calls = [
            PLAIN.written(call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False))
            for call in message.get("tool_calls", ())
        ]
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        yield {**kept, "content": "\n".join(filter(None, (message["content"], *calls)))}
    if results:
        yield {"role": "user", "content": "\n".join(results)}
