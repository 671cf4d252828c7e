"""The pool: seeds and what was accepted so far; and what becomes of each thing that a model proposes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_jax.core.similarity import Similar, SimilarityIndex
from llama_jax.instruct.filters import InstructionFilter
from llama_jax.instruct.languages import Language
from llama_jax.instruct.tasks import Instance, Task

_SHOWN_SIMILAR = 3
_MOST_KEPT_TEXT = 2000
"""Characters of what is no task that are kept to look at."""


@dataclass
class Candidate:
    """What a model proposed, and what became of it. A line of candidates.jsonl."""

    instruction: str
    reason: str | None = None
    """Why it is not among the tasks; None: it is."""
    in_pool: bool = False
    """Whether later instructions are compared with it."""
    similar: list[list[Any]] = field(default_factory=list)
    """The most similar instructions of seeds and pool, each with its ROUGE-L."""
    seed_similarity: float = 0.0
    """ROUGE-L with the most similar seed."""
    is_classification: bool = False
    instances: list[dict[str, str]] = field(default_factory=list)
    dropped_instances: dict[str, int] = field(default_factory=dict)
    """How many instances were dropped, by reason."""

    @staticmethod
    def malformed(text: str, reason: str) -> "Candidate":
        """What is no instruction at all."""
        return Candidate(text.strip()[:_MOST_KEPT_TEXT], reason)

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> "Candidate":
        """As it was written."""
        return Candidate(**{name: record[name] for name in Candidate.__dataclass_fields__})

    def record(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)

    def give(self, instances: Sequence[Instance]) -> None:
        """Take the instances that were kept."""
        self.instances = [asdict(instance) for instance in instances]

    @property
    def task(self) -> Task:
        """What was kept of it."""
        return Task(self.instruction, tuple(Instance(**each) for each in self.instances), self.is_classification)


class Pool:
    """Instructions that new ones are compared with. One that is accepted is in it at once."""

    def __init__(
        self, seeds: Sequence[Task], language: Language, rules: InstructionFilter, max_similarity: float
    ) -> None:
        self.seeds = seeds
        self.machine_written: list[str] = []
        self._rules, self._max_similarity = rules, max_similarity
        self._texts: list[str] = []
        self._seed_index, self._index = SimilarityIndex(language.words), SimilarityIndex(language.words)
        for seed in seeds:
            self._seed_index.add(seed.instruction)
            self._add(seed.instruction)

    def propose(self, instruction: str) -> Candidate:
        """A candidate with the verdict on its instruction; without a reason to drop it, it is in the pool now."""
        found = Candidate(instruction, self._rules.reason(instruction))
        if found.reason is not None:
            return found
        similar = self._index.most_similar(instruction, _SHOWN_SIMILAR)
        found.similar = [[self._texts[each.number], each.score] for each in similar]
        found.seed_similarity = _score(self._seed_index.most_similar(instruction))
        if _score(similar) > self._max_similarity:
            found.reason = "similar"
        else:
            found.in_pool = True
            self.accept(found)
        return found

    def accept(self, candidate: Candidate) -> None:
        """Put an instruction into the pool that was found fit for it."""
        self._add(candidate.instruction)
        self.machine_written.append(candidate.instruction)

    def _add(self, text: str) -> None:
        self._index.add(text)
        self._texts.append(text)


def _score(similar: Sequence[Similar]) -> float:
    return similar[0].score if similar else 0.0
