"""The scores that a reward model gives to examples that it has not learned from."""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.core.placing import place_whole_batch
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.core.sharding import replicated
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.completions import at_ends
from llama_jax.objectives.reward import Losses
from llama_jax.runs.score_report import PairReport, ScoredReport
from llama_jax.runs.verdict import Verdict


@functools.partial(jax.jit, static_argnums=(0, 1))
def end_scores(
    model: LanguageModel, losses: Losses, params: PyTree, batch: CompletionBatch
) -> tuple[Float[Array, "B K M"], Float[Array, "B K"]]:
    """The score at the end of each answer, and the loss of each example."""
    values = model.scores(params, model.hidden(params, batch.tokens, batch.positions, batch.segment_ids))
    return at_ends(values, batch), losses(values, batch)


class HeldOutScores:
    """Evaluates a reward model on the same examples again and again.

    Args:
        losses: that of training.
        kind: class of the batches.
        batches: makes the rows of each global batch anew, whole on every process.
        run: keeps a picture of the scores.
    """

    def __init__(
        self,
        model: LanguageModel,
        losses: Losses,
        kind: type[CompletionBatch],
        batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
        run: RunDirectory,
    ) -> None:
        self._model, self._losses, self._kind, self._batches, self._run = model, losses, kind, batches, run
        self._last: PairReport | ScoredReport | None = None

    def begin(self, params: PyTree | None) -> list[str]:
        """Say how good the model is before training; with None, nothing."""
        if params is None or (found := self._measured(params)) is None:
            return []
        return [f"before training: {found[0].verdict().figures()}"]

    def __call__(self, params: PyTree) -> MetricsRecord:
        """`validation_loss`, what the report records, as `validation_<name>`, and `reward_mean` and `reward_deviation`
        of the scores of all answers, where they are numbers. Nothing where no example is held out."""
        if (found := self._measured(params)) is None:
            return {}
        self._last, loss = found
        record: MetricsRecord = {"validation_loss": loss}
        record |= {f"validation_{name}": value for name, value in self._last.record().items()}
        scores = self._last.scores
        if np.isfinite(scores).all():
            record |= {"reward_mean": float(scores.mean()), "reward_deviation": float(scores.std())}
            if self._run.is_main_process:
                self._last.draw(self._run.scores)
        return record

    def result(self) -> list[str]:
        """What to say of the last evaluation, beside the verdict."""
        return [] if self._last is None else [*self._last.lines(), f"a picture of the scores is in {self._run.scores}"]

    @property
    def verdict(self) -> Verdict | None:
        """The last figure beside that of length alone."""
        return None if self._last is None else self._last.verdict()

    def _measured(self, params: PyTree) -> tuple[PairReport | ScoredReport, float] | None:
        """The report and the mean loss; None where there is no example."""
        mesh = jax.sharding.get_mesh()
        scores, lengths, labels, losses = [], [], [], []
        for rows in self._batches():
            batch = place_whole_batch(mesh, self._kind, rows, len(rows["tokens"]))
            found = end_scores(self._model, self._losses, params, batch)
            ends, of_example = (np.asarray(jax.device_put(each, replicated(mesh)), np.float64) for each in found)
            is_there = rows["example_weights"] > 0
            scores.append(ends[is_there])
            losses.append(of_example[is_there])
            lengths.append(completion_lengths(rows)[is_there])
            labels.append(rows["labels"][is_there].astype(np.float64))
        if not sum(map(len, losses)):
            return None
        every, sizes, told = np.concatenate(scores), np.concatenate(lengths), np.concatenate(labels)
        report = PairReport(every, sizes) if every.shape[1] == 2 else ScoredReport(every, told, sizes)
        return report, float(np.concatenate(losses).mean())


def completion_lengths(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Completion tokens of each sequence in rows, `[B, K, M]`."""
    B, K, M = rows["starts"].shape
    numbers = np.arange(1, K * M + 1)
    counted = (rows["segment_ids"][..., None] == numbers) * rows["loss_weights"][..., None]
    return counted.sum(axis=1).reshape(B, K, M)
