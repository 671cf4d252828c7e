"""The process that renders chat templates: started when first needed, used again, killed when a template misbehaves."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.core.errors import UserError

_PROGRAM = Path(__file__).with_name("template_worker.py")
_START_SECONDS = 60.0
_LARGEST_TEMPLATE = 2**18  # characters; Llama 3.1's has 4,600
_LARGEST_ANSWER = 2**24  # bytes; the worker's bound on characters, each escaped at the most

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


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
    request = {"template": template, "variables": dict(variables), "seconds": timeout_seconds + 1.0}
    with _lock:
        try:
            process = _running()
            deadline = time.monotonic() + timeout_seconds
            _send(process, json.dumps(request).encode() + b"\n", deadline)
            answer = json.loads(_line(process, deadline))
        except TimeoutError:
            _kill()
            raise UserError(f"chat template: takes longer than {timeout_seconds:g} s to render") from None
        except (EOFError, OSError):
            _kill()
            raise UserError("chat template: its process died; it asks for too much memory or time") from None
        except BaseException:
            _kill()  # an answer may be under way, and would be taken for that of the next template
            raise
    if "error" in answer:
        raise UserError(f"chat template: {answer['error']}")
    return answer["text"]


def _running() -> subprocess.Popen[bytes]:
    global _process
    if _process is None or _process.poll() is not None:
        # -P: the folder of the program, which is not meant to be imported from, stays off the path.
        command = [sys.executable, "-P", str(_PROGRAM)]
        _process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert _process.stdin is not None
        os.set_blocking(_process.stdin.fileno(), False)
        _line(_process, time.monotonic() + _START_SECONDS)
    return _process


def _kill() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
    _process = None


def _forget() -> None:
    """In a forked process: the pipes are the parent's."""
    global _process
    _process = None


os.register_at_fork(after_in_child=_forget)


def _send(process: subprocess.Popen[bytes], content: bytes, deadline: float) -> None:
    assert process.stdin is not None
    left = memoryview(content)
    while left:
        if not select.select([], [process.stdin], [], max(0.0, deadline - time.monotonic()))[1]:
            raise TimeoutError
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(process.stdin.fileno(), left) :]


def _line(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert process.stdout is not None
    content = bytearray()
    while not content.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 2**16)
        content += part
        if not part or len(content) > _LARGEST_ANSWER:
            raise EOFError
    return bytes(content)
