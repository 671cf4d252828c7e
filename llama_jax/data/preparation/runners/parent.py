"""Processes that do not outlive the one that started them."""

import multiprocessing
import multiprocessing.connection
import threading
from collections.abc import Callable


def end_with_parent(end: Callable[[], object]) -> None:
    """Have a thread call `end` when the process that started this one is gone. A parent that is killed cannot say so,
    and a process that is at something long would outlive it."""
    threading.Thread(target=_wait, args=(end,), name="parent", daemon=True).start()


def _wait(end: Callable[[], object]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        end()
