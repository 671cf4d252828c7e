"""How far a measurement is: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from llama_jax.core.distributed import is_main_process

_SECONDS_BETWEEN_LINES = 20


@contextmanager
def shown_progress(total: int, unit: str, stream: IO[str]) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each unit. Shows on the main process only, and makes no guess of the time left:
    the longest come first, and a document ends with the last of its requests.

    Args:
        total: number of units.
        unit: what they are, such as "documents".
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=stream)
    if not is_main_process():
        yield lambda: None
    elif console.is_terminal:
        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(unit, total=total)
            yield lambda: bar.advance(task)
    else:
        started = said = time.monotonic()
        done = 0

        def advance() -> None:
            nonlocal done, said
            done += 1
            if (now := time.monotonic()) - said >= _SECONDS_BETWEEN_LINES and done < total:
                said = now
                print(f"{done} of {total} {unit} after {now - started:.0f} s", file=stream, flush=True)

        yield advance
