"""Renders chat templates, which are untrusted programs: for `GuardedProcess`. Imports nothing but jinja2."""

import functools
import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes, parser

MOST_CHARACTERS = 2**20


class GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}`, with which templates mark what the assistant says; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - as in jinja2's own extensions

    def parse(self, parser: parser.Parser) -> nodes.Node:
        """The block's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)  # jinja2's own escapes HTML


def _environment() -> jinja2.Environment:
    """As transformers renders chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


@functools.lru_cache(8)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def rendered(template: str, variables: dict[str, Any]) -> str:
    """The text that a template gives, in this process.

    Raises:
        jinja2.TemplateError: the template is wrong, raises an exception, or gives too much.
    """
    parts: list[str] = []
    length = 0
    for part in _compiled(template).generate(variables):
        length += len(part)
        if length > MOST_CHARACTERS:
            raise jinja2.TemplateError(f"gives more than {MOST_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def _complaint(error: Exception) -> str:
    """The error in one line, with the line of the template where it is known."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    message = " ".join(str(error).split()) or type(error).__name__
    return f"line {line}: {message:.200}" if line else f"{message:.200}"


def answer(request: dict[str, Any]) -> dict[str, str]:
    """`text`, or `error`, for a `template` and its `variables`."""
    try:
        return {"text": rendered(request["template"], request["variables"])}
    except Exception as error:  # whatever a template does, it is the template's error
        return {"error": _complaint(error)}
