"""What a language model has learned of preferences that it never saw: the loss, and how often the rewards that it
implies are right, beside how often length alone is."""

import json
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import PyTree
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.preferences.examples import CompletionExamples
from llama_jax.objectives.kto import kl_estimate, kto_losses
from llama_jax.objectives.preference import PairLoss
from llama_jax.runs.score_report import PairReport
from llama_jax.runs.verdict import Verdict, mean_and_error


class Judged(NamedTuple):
    """What the log-probs of examples come to."""

    losses: np.ndarray
    """Of each example."""
    right: np.ndarray
    """1 where the implied reward of an example is right, one half where it does not tell, else 0."""
    chosen: float
    """Mean reward of the answers that are preferred."""
    rejected: float
    """Mean reward of the others."""
    likelier: float | None
    """Share of the pairs whose better answer is the likelier one, whatever the reference model says of them; None where
    there are no pairs."""
    length_rule: str
    """What the length alone would say: of its rules, the one that is right of most of these very examples."""
    right_by_length: np.ndarray
    """As `right`, of that rule."""


Judge: TypeAlias = Callable[[np.ndarray, CompletionExamples], Judged]
"""`(logprobs [N, M], examples)` to what they come to."""


def judge_pairs(
    loss: PairLoss, beta: float, per_token: bool, logprobs: np.ndarray, examples: CompletionExamples
) -> Judged:
    """Pairs: the better answer has the larger reward, which is beta times what `objectives.preference` calls ratios."""
    ratios, lengths = (np.asarray(x, np.float32) for x in (logprobs - examples.reference, examples.lengths))
    rewards = (beta * (ratios / lengths if per_token else ratios)).astype(np.float64)
    losses = np.asarray(loss(jnp.asarray(ratios), jnp.asarray(lengths)), np.float64)
    report = PairReport(rewards, examples.lengths)
    rule, by_length = report.length_rule
    likelier = float(PairReport(logprobs, examples.lengths).right.mean())
    chosen, rejected = rewards.mean(axis=0).tolist()
    return Judged(losses, report.right, chosen, rejected, likelier, f"preferring the {rule} answer", by_length)


def judge_labels(
    beta: float, weights: tuple[float, float], logprobs: np.ndarray, examples: CompletionExamples
) -> Judged:
    """Good and bad answers: against the reference model a good one has become likelier than answers have on average,
    which is the divergence, and a bad one less likely. See `objectives.kto`; `weights` are those of good and bad."""
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
    gained = ratios[:, 0].astype(np.float64) - float(kl)
    signs = 2 * labels.astype(np.float64) - 1
    chosen, rejected = (float(beta * ratios[of, 0].mean()) if of.any() else 0.0 for of in (labels > 0, labels <= 0))
    right = (1 + np.sign(signs * gained)) / 2
    rule, by_length = _length_rule(examples.lengths[:, 0], signs)
    return Judged(np.asarray(losses, np.float64), right, chosen, rejected, None, rule, by_length)


def _length_rule(lengths: np.ndarray, signs: np.ndarray) -> tuple[str, np.ndarray]:
    """Calling answers of at most, or of at least, so many tokens good, as is right of most of these; all or none of
    them, if that is. Signs are 1 for a good one and -1 for a bad one."""
    bounds = [-1, *np.unique(lengths).tolist()]
    called = [np.where(lengths <= bound, 1, -1) for bound in bounds]
    gains = np.array([(each * signs).sum() for each in called])
    best = int(np.argmax(np.abs(gains)))
    by_length = (1 + np.sign(gains[best] or 1) * called[best] * signs) / 2
    if bounds[best] < 0:
        return f"calling every answer {'bad' if gains[best] >= 0 else 'good'}", by_length
    side = "at most" if gains[best] >= 0 else "more than"
    return f"calling answers of {side} {bounds[best]} tokens good", by_length


class HeldOutPreferences:
    """Evaluates on the same examples again and again; the first result is what later ones are compared with.

    Args:
        logprobs: finds log p of the answers of all examples with some parameters, [N, M].
        examples: those that are held out.
        run: keeps the log-probs before training.
        has_reference: the model is its own reference before training.
    """

    def __init__(
        self,
        logprobs: Callable[[PyTree], np.ndarray],
        examples: CompletionExamples,
        judge: Judge,
        run: RunDirectory,
        *,
        has_reference: bool,
    ) -> None:
        self._logprobs, self._examples, self._judge, self._run = logprobs, examples, judge, run
        self._has_reference = has_reference
        self._before: np.ndarray | None = None
        self._last: np.ndarray | None = None

    def begin(self, params: PyTree | None) -> list[str]:
        """Find the log-probs before training, or take them from the run directory, where an earlier life has left them.

        Args:
            params: of the untrained model; None where they are gone.

        Returns:
            What to say of it; nothing where it was said before.
        """
        if not len(self._examples.labels):
            return []
        if params is None:
            if self._run.losses_before.exists():
                self._before = np.array(json.loads(self._run.losses_before.read_text()), np.float32)
            return []
        self._before = self._examples.reference if self._has_reference else self._logprobs(params)
        self._run.keep(self._run.losses_before, json.dumps(self._before.tolist()))
        return [f"held out, before training: {self._described(self._before)}"]

    def __call__(self, params: PyTree) -> MetricsRecord:
        """`validation_loss`; `validation_accuracy` of the implied rewards with its standard error, beside that of
        length; their means. Nothing where no example is held out."""
        if not len(self._examples.labels):
            return {}
        self._last = self._logprobs(params)
        found = self._judge(self._last, self._examples)
        accuracy, error = mean_and_error(found.right)
        return {
            "validation_loss": float(found.losses.mean()),
            "validation_accuracy": accuracy,
            "validation_accuracy_standard_error": error,
            "validation_length_accuracy": float(found.right_by_length.mean()),
            "validation_rewards_chosen": found.chosen,
            "validation_rewards_rejected": found.rejected,
            "validation_reward_margin": found.chosen - found.rejected,
        }

    def result(self) -> list[str]:
        """What to say of the last evaluation, beside the verdict."""
        stages = (("before", self._before), ("after", self._last))
        return [f"held out, {when} training: {self._described(each)}" for when, each in stages if each is not None]

    @property
    def verdict(self) -> Verdict | None:
        """The accuracy of the implied rewards beside that of length alone."""
        if self._last is None:
            return None
        found = self._judge(self._last, self._examples)
        accuracy, error = mean_and_error(found.right)
        return Verdict(
            name="held-out accuracy of the implied rewards",
            figure=accuracy,
            standard_error=error,
            baseline_name=found.length_rule,
            baseline=float(found.right_by_length.mean()),
            difference_error=mean_and_error(found.right - found.right_by_length)[1],
            count=len(found.right),
            unit="%",
        )

    def _described(self, logprobs: np.ndarray) -> str:
        found = self._judge(logprobs, self._examples)
        accuracy, error = mean_and_error(found.right)
        spread = "" if error is None else f" ± {100 * error:.1f}"
        return (
            f"loss {found.losses.mean():.4f}, implied rewards {found.chosen:.4f} and {found.rejected:.4f}, "
            f"margin {found.chosen - found.rejected:.4f}, right in {100 * accuracy:.1f}{spread} %"
        ) + ("" if found.likelier is None else f"; the better answer is likelier in {100 * found.likelier:.1f} %")
