"""What the preparation of a corpus is made of: a job that every process knows, passes over its shards, and searches for
duplicates, each with passes of its own. Knows no runner, no rule and no search by name.

What a pass needs of an earlier one it reads from files, so its elements carry nothing but a number, may be made in any
order, by any machine, and again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath

from llama_jax.core.arrays import Int
from llama_jax.data.preparation.cleaning import Cleaning
from llama_jax.data.preparation.report.origins import Origins
from llama_jax.data.preparation.rules.rule import Rule
from llama_jax.data.sources.documents import Documents
from llama_jax.data.tokenizers import Tokenizer

PROGRESS = "progress"
"""The folder, within the prepared directory, of all that is only needed until it is finished."""

Count = Callable[[int, int, int], None]
"""Called now and then with the documents, bytes of text and tokens done since its last call; may raise, to stop."""


@dataclass(frozen=True)
class Job:
    """What every process needs. Pickled once for each."""

    documents: Documents
    tokenizer: Tokenizer
    cleaning: Cleaning
    bounds: Sequence[int]
    """Number of the first document of each shard, and of the document after the last."""
    directory: epath.Path
    fail_on_bad: bool
    """A bad record ends the work instead of being left out."""
    origins: Origins
    """The parts of the corpus by which its report counts documents."""
    rules: tuple[Rule, ...] = ()
    """In the order in which they see a document; the first that drops it ends this."""
    searches: tuple["Search", ...] = ()
    """In the order in which they drop documents; what one drops, the next does not see."""

    @property
    def shards(self) -> int:
        return len(self.bounds) - 1

    @property
    def progress(self) -> epath.Path:
        """The folder for files of passes, which is removed at the end."""
        return self.directory / PROGRESS

    def documents_of(self, shard: int) -> range:
        """The numbers of a shard's documents."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    def shards_of(self, documents: Int[np.ndarray, "documents"]) -> Int[np.ndarray, "documents"]:
        """Of each document, by its number, the shard that it is in."""
        return np.searchsorted(np.asarray(self.bounds), documents, side="right") - 1


class Pass(NamedTuple):
    """Work on elements that do not know of each other."""

    title: str
    """What is done, as it is shown, such as `writing`."""
    work: Callable[[Job, int, Count], None]
    """Makes an element, by its number: whole files that depend on the job and files of earlier passes alone, that of
    `done` last. A function of a module, or a partial of one without the job, since it is pickled."""
    amounts: Sequence[int]
    """Of each element, how much there is of it, in `unit`, which `work` counts as documents."""
    done: Callable[[int], epath.Path]
    """The file that says that an element is made."""
    unit: str = "documents"

    def missing(self) -> list[int]:
        """The elements that are not made yet, ascending."""
        paths = [self.done(number) for number in range(len(self.amounts))]
        there = {path for folder in {path.parent for path in paths} if folder.exists() for path in folder.iterdir()}
        return [number for number, path in enumerate(paths) if path not in there]


@runtime_checkable
class Notes(Protocol):
    """What a search keeps of the documents of one shard."""

    def add(self, document: int, text: str) -> None:
        """Note a document that no rule drops, as the rules leave its text."""
        ...

    def write(self) -> None:
        """Write what was noted, as whole files below `Job.progress`."""
        ...


class Search:
    """A way in which documents, or paragraphs of them, repeat others; a base class. Instances are small, and pickled
    with the job."""

    name: str
    """Of its files, and in what is shown."""

    def notes(self, job: Job, shard: int) -> Notes:
        """To note the documents of a shard while they are examined."""
        raise NotImplementedError

    def passes(self, job: Job) -> Iterator[Pass]:
        """The passes, from the notes on all shards to what is to be left out. Code between two of them is run by one
        process, when the former has made all of its elements; it only looks at what is small."""
        raise NotImplementedError

    def dropped(self, job: Job, shard: int) -> Mapping[int, Mapping[str, Any]]:
        """By number, what `dropped.jsonl` says of the documents of a shard that are left out, once the passes are
        done: `reason`, and what else is known."""
        return {}

    def edits(self, job: Job, shard: int) -> Callable[[int, str], tuple[str, Mapping[str, int]]] | None:
        """From the number and the text of a document of the shard to its text without what it repeats, and how many
        lines or paragraphs went, by name; None where this search edits nothing."""
        return None

    def summary(self, job: Job) -> str:
        """What was found, in one line."""
        raise NotImplementedError


def dropped_before(job: Job, search: Search, shard: int) -> dict[int, Mapping[str, Any]]:
    """By number, the documents of a shard that the searches before this one leave out."""
    found: dict[int, Mapping[str, Any]] = {}
    for each in job.searches:
        if each is search:
            break
        found |= each.dropped(job, shard)
    return found


@runtime_checkable
class Progress(Protocol):
    """What a runner tells of a pass while it goes on."""

    def count(self, documents: int, text_bytes: int, tokens: int) -> None:
        """More was done; less, where what was counted is made again."""
        ...

    def tick(self) -> None:
        """Called several times a second; may raise, to stop."""
        ...


@runtime_checkable
class Runner(Protocol):
    """Makes the elements of passes, one pass after another; a context manager that ends what it started."""

    def __enter__(self) -> "Runner": ...

    def __exit__(self, *_: object) -> None: ...

    def made(self, task: Pass, numbers: Sequence[int], progress: Progress) -> Iterator[int]:
        """Make elements of a pass; gives the number of each once it is made, in any order.

        Raises:
            CannotGoOnError: elements cannot be made, for a reason that is not in them.
        """
        ...
