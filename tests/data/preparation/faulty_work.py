"""Work of passes that goes wrong: functions that other processes import."""

import os
import signal

from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.data.preparation.job import Count, Job


def makes(job: Job, number: int, count: Count) -> None:
    """Nothing goes wrong."""
    write_whole(job.progress / f"made-{number}", f"element {number}")


def dies_once(job: Job, number: int, count: Count) -> None:
    """The process is killed at the first attempt at element 1."""
    count(1, 0, 0)
    if number == 1 and not (job.progress / "tried").exists():
        (job.progress / "tried").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    makes(job, number, count)


def dies(job: Job, number: int, count: Count) -> None:
    """The process is killed at every attempt at element 1."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    makes(job, number, count)


def fails_once(job: Job, number: int, count: Count) -> None:
    """The first attempt at element 1 raises what another might not."""
    if number == 1 and not (job.progress / "tried").exists():
        (job.progress / "tried").write_text("")
        raise ConnectionError("a bucket out of reach")
    makes(job, number, count)


def refuses(job: Job, number: int, count: Count) -> None:
    """Element 1 is the user's mistake."""
    if number == 1:
        raise UserError("data.source: element 1 is not text")
    makes(job, number, count)
