"""What every evaluation needs: the model, where results go, and samples that survive an interruption."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TypeVar

import jax
from etils import epath

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.core.recording.terminal import LiveLine
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.evals.answers import Answerer
from llama_jax.evals.config import EvaluateConfig
from llama_jax.evals.kept_samples import KeptSamples
from llama_jax.evals.scoring import Scorer
from llama_jax.evals.tasks import Sample

Document = TypeVar("Document")

WITHOUT_INFLUENCE = ("json", "output", "distributed")
"""Settings that change no result."""
_NOT_IN_KEYS = (
    *WITHOUT_INFLUENCE,
    *("model", "step", "adapters", "tokenizer", "data", "fewshot_data"),
    *("bad_records", "max_bad_fraction"),
    *("mesh", "batch_size"),
)
"""Settings that a sample depends on not at all, through what has a fingerprint of its own, or by rounding alone."""


def params_fingerprint(params: PyTree) -> str:
    """SHA-256 over the fingerprints of all parameters, in the type they are used in: the same on any mesh."""
    words = jax.device_get(tree.flatten(tree.fingerprints(params)))
    return hashlib.sha256(b"".join(path.encode() + words[path].tobytes() for path in sorted(words))).hexdigest()


def bad_records_of(config: EvaluateConfig, source: str, say: Callable[[str], None]) -> BadRecords:
    """Where the bad records of a source are counted, as the settings have it."""
    return BadRecords(source, config.bad_records, config.max_bad_fraction, settings="--", say=say)


@dataclasses.dataclass(frozen=True)
class Session:
    """What every task needs."""

    config: EvaluateConfig
    opened: OpenModel
    output: epath.Path | None
    stream: IO[str]
    """Where people read what is happening; `say` writes whole lines to it."""
    say: Callable[[str], None]
    model_fingerprint: str

    @property
    def context_length(self) -> int:
        """Tokens in a row at the most."""
        context = self.opened.model.config.context_length
        length = self.config.sequence_length or context
        if length > context:
            raise UserError(f"--sequence_length {length}: exceeds the model's context of {context} tokens")
        return length

    def scorer(self) -> Scorer:
        """For likelihoods, on the mesh in use."""
        rows, length = self.config.batch_size, self.context_length
        return Scorer(self.opened.model, self.opened.params, rows=rows, context_length=length)

    def answerer(self) -> Answerer:
        """For answers, on the mesh in use."""
        opened, rows = self.opened, self.config.batch_size
        return Answerer(opened.model, opened.params, opened.tokenizer, rows=rows, context_length=self.context_length)

    def samples(
        self,
        documents: Sequence[Document],
        content: str,
        measure: Callable[[Mapping[int, Document]], Iterator[tuple[int, Sample]]],
    ) -> list[Sample]:
        """A sample of each document; those that the same evaluation measured before it was interrupted are kept.

        Args:
            content: tells other documents apart.
            measure: gives the samples of documents by number, in any order.
        """
        settings = dataclasses.asdict(self.config)
        for name in _NOT_IN_KEYS:
            del settings[name]
        facts = [settings, self.model_fingerprint, self.opened.tokenizer.fingerprint, content]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        kept = KeptSamples(self.output, key, self.say)
        left = {number: document for number, document in enumerate(documents) if number not in kept.by_document}
        for number, sample in self._with_progress(measure(left), len(left)):
            kept.add(number, sample)
        kept.close()
        return [kept.by_document[number] for number in range(len(documents))]

    def _with_progress(self, samples: Iterator[tuple[int, Sample]], total: int) -> Iterator[tuple[int, Sample]]:
        """The same, with a line on the main process that says how far they are. It does not guess the time left: the
        longest come first, and a document ends with the last of its requests."""
        if not is_main_process():
            yield from samples
            return
        from rich.console import Console

        line, started = LiveLine(self.say, console=Console(file=self.stream)), time.monotonic()
        try:
            for done, sample in enumerate(samples, 1):
                yield sample
                line.update(lambda done=done: f"{done} of {total} documents after {time.monotonic() - started:.0f} s")
        finally:
            line.close()
