"""What a model has learned of preferences that it never saw: the loss, how often the rewards that it implies are right,
and how often length alone is."""

import json
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import PyTree
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.kto import kl_estimate, kto_losses
from llama_jax.objectives.preference import PairLoss
from llama_jax.runs.completion_sums import completion_sums
from llama_jax.runs.verdict import Verdict, mean_and_error


@runtime_checkable
class Compared(Protocol):
    """Examples of completions, as data keep them."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each completion [N, M]."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """See `CompletionBatch`, [N]."""
        ...

    @property
    def reference(self) -> np.ndarray:
        """log p of each completion under the reference model [N, M]."""
        ...


class Judged(NamedTuple):
    """What the log-probs of examples come to."""

    losses: np.ndarray
    """Of each example."""
    right: np.ndarray
    """1 where the implied reward of an example is right, 0 where it is wrong, 1/2 where it says nothing."""
    chosen: float
    """Mean reward of what is preferred."""
    rejected: float
    """Mean reward of the others."""


Judge: TypeAlias = Callable[[np.ndarray, Compared], Judged]
"""`(logprobs [N, M], examples)` to what they come to."""


def judge_pairs(loss: PairLoss, beta: float, per_token: bool, logprobs: np.ndarray, examples: Compared) -> Judged:
    """Pairs: the chosen completion has the larger reward. See `objectives.preference`."""
    ratios, lengths = (np.asarray(x, np.float32) for x in (logprobs - examples.reference, examples.lengths))
    rewards = beta * (ratios / lengths if per_token else ratios)
    losses = np.asarray(loss(jnp.asarray(ratios), jnp.asarray(lengths)), np.float64)
    chosen, rejected = rewards.T.astype(np.float64)
    return Judged(losses, _agreement(chosen - rejected), float(chosen.mean()), float(rejected.mean()))


def judge_labels(beta: float, weights: tuple[float, float], logprobs: np.ndarray, examples: Compared) -> Judged:
    """Completions with a label: good ones are likelier, against the reference model, than what it diverges by, bad ones
    less likely. See `objectives.kto`; `weights` are those of good ones and of bad ones."""
    ratios, labels = np.asarray(logprobs - examples.reference, np.float32), examples.labels
    kl = kl_estimate(jnp.asarray(ratios[:, 1].sum()), jnp.asarray(len(ratios), jnp.float32))
    desirable, undesirable = weights
    losses = kto_losses(
        jnp.asarray(ratios[:, 0]),
        jnp.asarray(labels, jnp.float32),
        kl,
        beta=beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
    )
    right = _agreement((2 * labels - 1) * (ratios[:, 0].astype(np.float64) - float(kl)))
    chosen, rejected = (float(beta * (ratios[of, 0].mean() if of.any() else 0.0)) for of in (labels > 0, labels <= 0))
    return Judged(np.asarray(losses, np.float64), right, chosen, rejected)


def pairs_right_by_length(training: Compared, held_out: Compared) -> np.ndarray:
    """How often one is right who prefers the shorter completion, or the longer one, whichever the training pairs do."""
    taught, asked = (np.sign(each.lengths[:, 0] - each.lengths[:, 1]) for each in (training, held_out))
    return _agreement((-1 if taught.sum() < 0 else 1) * asked)


def labels_right_by_length(training: Compared, held_out: Compared) -> np.ndarray:
    """How often one is right who calls completions good that are shorter than some length, or longer, as is most often
    right of the training examples; all, or none, if that is."""
    order = np.argsort(training.lengths[:, 0], kind="stable")
    lengths, signs = training.lengths[order, 0], 2 * training.labels[order] - 1
    # Number i: what is gained by calling the i shortest good and the others bad. Equal lengths cannot be told apart.
    gain = 2 * np.concatenate([[0], np.cumsum(signs)]) - signs.sum()
    gain[1:-1][lengths[1:] == lengths[:-1]] = 0
    best = int(np.argmax(np.abs(gain)))
    bound = -np.inf if best == 0 else lengths[best - 1]
    called = np.where(held_out.lengths[:, 0] <= bound, 1, -1) * (1 if gain[best] >= 0 else -1)
    return _agreement(called * (2 * held_out.labels - 1))


def _agreement(margins: np.ndarray) -> np.ndarray:
    return (1 + np.sign(margins)) / 2


class HeldOutPreferences:
    """Evaluates on the same examples again and again; the first result is what later ones are compared with.

    Args:
        batches: makes the rows of each global batch of `examples` anew, in their order.
        examples: those that are held out.
        right_by_length: see `Judged.right`, of length alone.
        run: keeps the log-probs before training.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: Callable[[], object],
        examples: Compared,
        judge: Judge,
        right_by_length: np.ndarray,
        run: RunDirectory,
    ) -> None:
        self._model, self._batches, self._examples, self._judge = model, batches, examples, judge
        self._by_length, self._run = right_by_length, run
        self._before: np.ndarray | None = None
        self._last: np.ndarray | None = None

    def begin(self, params: PyTree | None) -> list[str]:
        """Find the log-probs before training, or take them from the run directory, where an earlier life has left them.

        Args:
            params: of the untrained model; None where they are gone.

        Returns:
            What to say of it; nothing where it was said before.
        """
        if not len(self._examples.lengths):
            return []
        if params is None:
            if self._run.losses_before.exists():
                self._before = np.array(json.loads(self._run.losses_before.read_text()), np.float32)
            return []
        self._before = self._logprobs(params)
        self._run.keep(self._run.losses_before, json.dumps(self._before.tolist()))
        return [f"held out, before training: {self._described(self._before)}"]

    def __call__(self, params: PyTree) -> MetricsRecord:
        """`validation_loss`, `validation_accuracy` of the implied rewards with its standard error, and their means.
        Nothing where no example is held out."""
        if not len(self._examples.lengths):
            return {}
        self._last = self._logprobs(params)
        found = self._judge(self._last, self._examples)
        accuracy, error = mean_and_error(found.right)
        return {
            "validation_loss": float(found.losses.mean()),
            "validation_accuracy": accuracy,
            "validation_accuracy_standard_error": error,
            "validation_rewards_chosen": found.chosen,
            "validation_rewards_rejected": found.rejected,
            "validation_reward_margin": found.chosen - found.rejected,
        }

    def result(self) -> list[str]:
        """What to say of the last evaluation, beside the verdict."""
        return [] if self._last is None else [f"held out, after training: {self._described(self._last)}"]

    @property
    def verdict(self) -> Verdict | None:
        """The accuracy of the implied rewards beside that of length alone."""
        if self._last is None:
            return None
        right = self._judge(self._last, self._examples).right
        accuracy, error = mean_and_error(right)
        return Verdict(
            name="held-out accuracy of the implied rewards",
            figure=accuracy,
            standard_error=error,
            baseline_name="length alone",
            baseline=float(self._by_length.mean()),
            difference_error=mean_and_error(right - self._by_length)[1],
            count=len(right),
            unit="%",
        )

    def _logprobs(self, params: PyTree) -> np.ndarray:
        return completion_sums(self._model, params, self._batches())

    def _described(self, logprobs: np.ndarray) -> str:
        found = self._judge(logprobs, self._examples)
        accuracy, error = mean_and_error(found.right)
        spread = "" if error is None else f" ± {100 * error:.1f}"
        return (
            f"loss {found.losses.mean():.4f}, margin of the implied rewards {found.chosen - found.rejected:.4f} "
            f"({found.chosen:.4f} and {found.rejected:.4f}), right in {100 * accuracy:.1f}{spread} %"
        )
