"""Answers that are kept: what was asked once is never asked again, whatever run asks for it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_jax.core.errors import CannotGoOnError, SavedAfterSignal
from llama_jax.core.files import GrowingFile
from llama_jax.instruct.generators.requests import Answer, Generator, Request


class KeptAnswers:
    """A generator with all that it has answered so far, in a file of JSON lines by the hash of the request. Only where
    an answer is in the file is held in memory.

    Args:
        generator: Whoever answers what is new.
        path: The file; made if missing. A last line that a kill cut short is dropped.
        stopping: Whether the run was asked to end.
    """

    def __init__(self, generator: Generator, path: Path, stopping: Callable[[], bool] = lambda: False) -> None:
        self.generator, self._path, self._stopping = generator, path, stopping
        self._places: dict[str, int] = {}
        self.asked = self.reused = self.lost = 0
        """Requests that were asked now, that were answered before, and that no answer came to."""
        self.tokens_in = self.tokens_out = 0
        """Of all that is in the file, lost requests at the most they can have been."""
        self._file = GrowingFile(path, keep=_is_whole)
        self._end = 0
        with path.open("rb") as lines:
            for line in lines:
                self._count(json.loads(line), len(line))

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in the order of the requests.

        Raises:
            SavedAfterSignal: the run was asked to end; what was answered is kept.
            UserError: as `Generator.answers` has it, and CannotGoOnError too.
        """
        keys = [request.key(self.generator.identity) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._places}
        self.reused += len(requests) - len(new)
        wanted = list(new)
        for number, answer in self.generator.answers(list(new.values()), self._stopping, self._lose) if new else ():
            self._write({"key": wanted[number], **answer._asdict()})
            self.asked += 1
        if any(key not in self._places for key in keys):
            raise SavedAfterSignal
        return [self._read(key) for key in keys]

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _lose(self, tokens_in: int, tokens_out: int) -> None:
        self._write({"key": None, "tokens_in": tokens_in, "tokens_out": tokens_out})

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False)
        self._file.write(line)
        self._count(record, len(line.encode()) + 1)
        if self._path.stat().st_size != self._end:
            raise CannotGoOnError(f"{self._path}: an answer could not be written; is the disk full?")

    def _count(self, record: dict[str, Any], size: int) -> None:
        if record["key"] is None:
            self.lost += 1
        else:
            self._places.setdefault(record["key"], self._end)
        self.tokens_in += record["tokens_in"]
        self.tokens_out += record["tokens_out"]
        self._end += size

    def _read(self, key: str) -> Answer:
        with self._path.open("rb") as file:
            file.seek(self._places[key])
            record = json.loads(file.readline())
        del record["key"]
        return Answer(**record)


def _is_whole(line: str) -> bool:
    """Whether a line is one that was written here, to its end."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and {"key", "tokens_in", "tokens_out"} <= set(record)
