"""The other side of `GuardedProcess`: `python -P guarded_worker.py PROGRAM`, where PROGRAM is a file that defines
`answer(request)`, which gives a dictionary.

Reads one JSON object a line: `request`, `seconds`, the processor time that the answer may take, and `memory`, the bytes
of address space. Writes an answer a line. Whoever started it bounds the wall time and ends it; it ends by itself, with
all that it has started, when nobody is left to do so."""

import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def _limit(seconds: float, memory: int) -> None:
    """Bound the address space, and the processor time from now on, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limits = {
            resource.RLIMIT_AS: memory,
            resource.RLIMIT_CPU: math.ceil(time.process_time() + seconds),
        }
        for kind, limit in limits.items():
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def _program(file: str) -> Callable[[Any], dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("program", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["program"] = module
    spec.loader.exec_module(module)
    return module.answer


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Answer until there is nothing more to read."""
    # What is asked may never end, and whoever would end it may be killed.
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    # What the program reads and prints must not get between requests and answers.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    answer = _program(sys.argv[1])
    print(file=answers, flush=True)  # ready: what comes before is not the request's time
    for line in requests:
        asked = json.loads(line)
        _limit(asked["seconds"], asked["memory"])
        print(json.dumps(answer(asked["request"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
