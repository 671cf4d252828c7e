"""The shape of the answers to a request: what a request asks for, as a constraint on the engine's tokens and a reader
that takes the text apart."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.server.protocol.errors import of_user_error, wrong
from llama_jax.inference.server.shapes.call_layout import CallLayout, layout_of, with_calls_as_text
from llama_jax.inference.server.shapes.calls import CallReader, Tool, calls_grammar
from llama_jax.inference.server.shapes.grammar import Grammars, TokenConstraint, json_grammar


@runtime_checkable
class Reader(Protocol):
    """Takes the text of one answer apart as it comes."""

    def push(self, text: str) -> list[dict[str, Any]]:
        """What the text adds to the message, as OpenAI's `delta`s: `{"content": …}`, `{"tool_calls": […]}`."""
        ...

    def finish(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """What is left, and the reason to give: that of the engine ("stop", "length"), or "tool_calls"."""
        ...


class PlainText:
    """The `Reader` of an answer that is text."""

    def push(self, text: str) -> list[dict[str, Any]]:
        """The text as it is."""
        return [{"content": text}] if text else []

    def finish(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """Nothing is left."""
        return [], reason


@dataclass(frozen=True)
class Wanted:
    """What a request asks its answers to look like, and the names of the fields that say so."""

    schema: Mapping[str, Any] | None = None
    """JSON schema of the answer; None: any text."""
    schema_field: str = ""
    tools: Sequence[Tool] = ()
    """Functions that the answer may call."""
    call: Literal["none", "auto", "required"] = "auto"
    only: str | None = None
    """The name of the function that must be called."""
    parallel: bool = True
    """It may call several."""

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The functions that the model is told of."""
        return [] if self.call == "none" else [tool.described for tool in self.tools]


@dataclass(frozen=True)
class Shape:
    """What the answers of one request must look like."""

    make_constraint: Callable[[], TokenConstraint] | None = None
    """Made for each answer; None: any text."""
    make_reader: Callable[[], Reader] = PlainText


class Shapes:
    """Makes the shapes for one model. Slow where a grammar or the model is new: called in threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer)

    @functools.cached_property
    def _layout(self) -> CallLayout | None:
        return layout_of(self._tokenizer)

    def messages(self, messages: Sequence[Mapping[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
        """A conversation as the model's chat template can lay it out, with the functions that may be called."""
        calls = wanted.offered or any("tool_calls" in message or message["role"] == "tool" for message in messages)
        by_template = not calls or self._layout is None or self._layout.by_template
        return list(map(dict, messages)) if by_template else with_calls_as_text(messages, wanted.offered)

    def shape(self, wanted: Wanted) -> Shape:
        """The shape that is asked for.

        Raises:
            ApiError: a schema or a function cannot be served; names the field.
        """
        try:
            as_json = None if wanted.schema is None else json_grammar(wanted.schema)
            if as_json is not None:
                self._grammars.check(f"start: {as_json}", wanted.schema_field)
            if not wanted.offered:
                return Shape() if as_json is None else Shape(self._maker(f"start: {as_json}"))
            if self._layout is None:
                problem = "the model's chat template writes calls in a way that is not served"
                raise wrong("tools", f"{problem}; use tool_choice none")
            chosen = [tool for tool in wanted.tools if wanted.only in (None, tool.name)]
            for number, tool in enumerate(wanted.tools):
                if tool in chosen and tool.parameters is not None:
                    self._grammars.check(f"start: {json_grammar(tool.parameters)}", f"tools[{number}] {tool.name}")
            grammar = calls_grammar(
                chosen,
                self._layout,
                otherwise=(as_json or "") if wanted.call == "auto" else None,
                parallel=wanted.parallel and wanted.only is None,
            )
            self._grammars.check(grammar, "tools")
        except UserError as error:
            raise of_user_error(error) from None
        return Shape(self._maker(grammar), functools.partial(CallReader, self._layout))

    def _maker(self, grammar: str) -> Callable[[], TokenConstraint]:
        return functools.partial(self._grammars.constraint, grammar)
