"""Whoever the settings name to answer, ready to be asked."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote
from llama_jax.core.processes.lock import WriterLock
from llama_jax.core.run_directory import RunDirectory
from llama_jax.instruct.config import AskingConfig
from llama_jax.instruct.generators.endpoint import Endpoint
from llama_jax.instruct.generators.kept import KeptAnswers
from llama_jax.instruct.generators.requests import Generator

FREE = (
    *("tasks", "max_requests", "patience", "conversations", "answers", "batch_size", "mesh", "distributed", "json"),
    *("endpoint.url", "endpoint.key_variable", "endpoint.concurrency", "endpoint.requests_per_minute"),
    *("endpoint.timeout_seconds", "endpoint.attempts", "endpoint.price_in", "endpoint.price_out", "endpoint.budget"),
)
"""Settings that may change between two starts of one run."""


@dataclass(frozen=True)
class Opened:
    """Who is asked, and what is known of the answers."""

    answers: KeptAnswers
    chats: bool
    """Ask with messages."""
    source: str
    """For people."""
    user_opening: str | None = None
    """What opens a user's turn in the model's template, where that is known."""

    @property
    def totals(self) -> dict[str, Any]:
        """Who answered, what was asked now, and what all answers of the file took."""
        return {
            "model": self.source,
            "asked": self.answers.asked,
            "lost": self.answers.lost,
            "tokens_in": self.answers.tokens_in,
            "tokens_out": self.answers.tokens_out,
            "dollars": self.spent,
        }

    @property
    def spent(self) -> float:
        """US dollars."""
        generator = self.answers.generator
        return generator.budget.spent if isinstance(generator, Endpoint) else 0.0


@contextlib.contextmanager
def opened_generator(
    config: AskingConfig, run: RunDirectory, stopping: Callable[[], bool], *, continues_chats: bool = False
) -> Iterator[Opened]:
    """Open what answers and the file of answers, for a `with` block, in which a model of this machine is on the mesh;
    the run begins.

    Args:
        stopping: Whether the run was asked to end.
        continues_chats: It must be known how the model's chat template opens a user's turn.

    Raises:
        UserError: the model or the endpoint cannot be used, or another run writes to the file of answers.
    """
    path = Path(config.answers or run.path / "answers.jsonl").expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--answers {config.answers}: there is no folder {path.parent}")
    lock = WriterLock(path.parent, f"--answers {path}") if path.parent.resolve() != Path(run.path).resolve() else None
    try:
        with _generator(config, run.say) as (generator, source, user_opening):
            chats = config.prompting == "chat" or (config.prompting == "auto" and generator.chats)
            if not generator.chats and (chats or continues_chats):
                setting = "form: magpie" if continues_chats else "prompting: chat"
                raise UserError(f"{setting} needs a model with a chat template, which {source} has not")
            run.begin()
            answers = KeptAnswers(generator, path, stopping)
            if isinstance(generator, Endpoint):
                generator.budget.spend(answers.tokens_in, answers.tokens_out)
            try:
                yield Opened(answers, chats, source, user_opening)
            finally:
                answers.close()
    finally:
        if lock is not None:
            lock.close(as_found=True)


def check_local(path: str) -> None:
    """Refuse a run directory that cannot be appended to.

    Raises:
        UserError: it is in object storage.
    """
    if is_remote(path):
        raise UserError(f"--run_dir {path}: must be on a disk; answers are appended one by one")


@contextlib.contextmanager
def _generator(config: AskingConfig, say: Callable[[str], None]) -> Iterator[tuple[Generator, str, str | None]]:
    if config.endpoint.model is not None:
        yield Endpoint(config.endpoint), f"{config.endpoint.model} at {config.endpoint.url or 'its endpoint'}", None
        return
    import jax

    from llama_jax.checkpoints.opening import open_named
    from llama_jax.core import tree
    from llama_jax.core.mesh import make_mesh
    from llama_jax.core.processes.distributed import start_up
    from llama_jax.instruct.generators.local import LocalModel, user_opening

    who = start_up(config.distributed)
    if jax.process_count() > 1:
        raise UserError(f"distributed: {jax.process_count()} processes; self_instruct is one, on all devices of a host")
    with jax.set_mesh(make_mesh(config.mesh)):
        opened = open_named(config, say)
        words = jax.device_get(tree.flatten(tree.fingerprints(opened.params)))
        fingerprint = hashlib.sha256(b"".join(path.encode() + words[path].tobytes() for path in sorted(words)))
        say(f"{who}; {opened.source}")
        yield (
            LocalModel(opened, fingerprint.hexdigest(), config.batch_size),
            opened.source,
            user_opening(opened.tokenizer),
        )
