"""Chat templates rendered in a process of their own, which is killed when a template misbehaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.processes.guarded import GuardedProcess, Request

_LARGEST_TEMPLATE = 2**18  # characters; Llama 3.1's has 4,600
_LARGEST_ANSWER = 2**24  # bytes; the worker's bound on characters, each escaped at the most
_MOST_MEMORY = 2**29

_PROCESS = GuardedProcess(Path(__file__).with_name("template_worker.py"))


def render_template(template: str, variables: Mapping[str, Any], *, timeout_seconds: float = 2.0) -> str:
    """The text a jinja template gives. Threads wait for one another.

    Args:
        variables: What the template sees; JSON.
        timeout_seconds: Wall time after which it is killed.

    Raises:
        UserError: the template is wrong, raises an exception, takes too long, or gives too much.
    """
    if len(template) > _LARGEST_TEMPLATE:
        raise UserError(f"chat template: has {len(template)} characters, more than {_LARGEST_TEMPLATE}")
    request = {"template": template, "variables": dict(variables)}
    try:
        answer = _PROCESS.ask(Request(request, timeout_seconds, _MOST_MEMORY, _LARGEST_ANSWER))
    except TimeoutError:
        raise UserError(f"chat template: takes longer than {timeout_seconds:g} s to render") from None
    except EOFError:
        raise UserError("chat template: its process died; it asks for too much memory or time") from None
    if "error" in answer:
        raise UserError(f"chat template: {answer['error']}")
    return answer["text"]
