"""A trainer of TRL's that waits between the parts of its own training loop, each of which is a turn. Imports no JAX."""

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

from llama_jax.benchmarks.turns import Turn, processors


class Waiting:
    """Runs `train` in a thread of its own, which stops wherever callbacks of the trainer say `wait`."""

    def __init__(self) -> None:
        self._allowed: Queue[int] = Queue()
        self._done: Queue[Any] = Queue()

    def begin(self) -> None:
        """Called by the loop before its first part."""
        self._allowed.get()

    def wait(self, found: Any) -> None:
        """Called by the loop after each part, with what was found in it."""
        self._done.put(found)
        self._allowed.get()

    def turns(self, train: Callable[[], object]) -> Turn:
        """Takes so many parts of the loop, and gives what was found in the last."""
        import torch

        def run() -> None:
            torch.set_num_threads(processors())
            try:
                train()
            except BaseException as error:
                self._done.put(error)

        threading.Thread(target=run, daemon=True).start()

        def turn(parts: int) -> Any:
            found: Any = None
            for _ in range(parts):
                self._allowed.put(1)
                found = self._done.get()
                if isinstance(found, BaseException):
                    raise found
            return found

        return turn
