"""What the scores of a reward model on examples that it has not learned from say of it, beside what the length of the
answers alone would say. Independent of the model."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from llama_jax.core.files import write_whole
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.runs.verdict import Verdict, mean_and_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = np.linspace(0.5, 1.0, 6)
"""Edges of the bins of confidence."""


@dataclass(frozen=True)
class Bin:
    """Pairs of which the model is about equally sure."""

    confidence: float
    """The mean probability that it gives to the answer that it prefers."""
    accuracy: float
    """Share of the pairs in which that answer is the better one."""
    count: int


@dataclass(frozen=True)
class PairReport:
    """Of pairs of a better and a worse answer."""

    scores: np.ndarray
    """`[N, 2]`: of the better and of the worse one."""
    lengths: np.ndarray
    """`[N, 2]`: completion tokens."""

    @property
    def right(self) -> np.ndarray:
        """1 for each pair that the scores put right, one half where they do not tell, else 0."""
        return _is_greater(self.scores)

    @property
    def length_rule(self) -> tuple[str, np.ndarray]:
        """What the length alone gets right: that of the two rules, the longer or the shorter, that gets more of these
        very pairs right, so that it is never below one half."""
        longer = _is_greater(self.lengths)
        return ("longer", longer) if longer.mean() >= 0.5 else ("shorter", 1 - longer)

    @property
    def margins(self) -> np.ndarray:
        """How much higher the better answer is scored."""
        return self.scores[:, 0] - self.scores[:, 1]

    @property
    def bins(self) -> list[Bin]:
        """Confidence and accuracy, where there are pairs."""
        confidence = 1 / (1 + np.exp(-np.abs(self.margins)))
        of_pair = np.clip(np.digitize(confidence, _BINS) - 1, 0, len(_BINS) - 2)
        chosen = (of_pair == number for number in range(len(_BINS) - 1))
        return [
            Bin(float(confidence[of].mean()), float(self.right[of].mean()), int(of.sum())) for of in chosen if of.any()
        ]

    def record(self) -> MetricsRecord:
        """By name; `calibration_error` is the mean distance of accuracy and confidence, over bins, weighted by pairs
        (expected calibration error, arXiv:1706.04599)."""
        accuracy, error = mean_and_error(self.right)
        distances = [each.count * abs(each.confidence - each.accuracy) for each in self.bins]
        return {
            "accuracy": accuracy,
            "accuracy_standard_error": error,
            "length_accuracy": float(self.length_rule[1].mean()),
            "reward_margin": float(self.margins.mean()),
            "calibration_error": sum(distances) / len(self.right),
        }

    def verdict(self) -> Verdict:
        """Accuracy beside that of length alone."""
        rule, by_length = self.length_rule
        accuracy, error = mean_and_error(self.right)
        difference_error = mean_and_error(self.right - by_length)[1]
        baseline = float(by_length.mean())
        name = f"preferring the {rule} answer"
        return Verdict("held-out accuracy", accuracy, error, name, baseline, difference_error, len(by_length), "%")

    def lines(self) -> list[str]:
        """For people, beside the verdict."""
        record = self.record()
        return [
            f"held-out pairs: the better answer is scored {record['reward_margin']:.3f} above the worse one; "
            f"calibration error {record['calibration_error']:.3f}"
        ]

    def draw(self, path: epath.PathLike) -> None:
        """A picture of the scores, and of how often the model is right where it is so sure."""

        def of_confidence(axis: "Axes") -> None:
            axis.plot([0.5, 1], [0.5, 1], color="gray", linewidth=1, linestyle="--", label="sure as often as right")
            bins = self.bins
            errors = [np.sqrt(each.accuracy * (1 - each.accuracy) / each.count) for each in bins]
            where = [each.confidence for each in bins]
            axis.errorbar(where, [each.accuracy for each in bins], yerr=errors, fmt="o-", color=_BLUE, capsize=3)
            for each in bins:
                axis.annotate(f"{each.count}", (each.confidence, 0.02), ha="center", fontsize=8, color="gray")
            axis.set(title="Calibration", xlabel="confidence", ylabel="accuracy", xlim=(0.48, 1.02), ylim=(0, 1.05))
            axis.legend(frameon=False, fontsize=9, loc="upper left")

        rule, by_length = self.length_rule
        of_rule = f"preferring the {rule} answer {by_length.mean():.1%}"
        title = f"accuracy {self.right.mean():.1%}, {of_rule}, on {len(self.right):,} pairs"
        groups = {"chosen": self.scores[:, 0], "rejected": self.scores[:, 1]}
        _draw(path, title, groups, of_confidence)


@dataclass(frozen=True)
class ScoredReport:
    """Of answers with a score."""

    scores: np.ndarray
    """`[N, 1]`: the model's."""
    labels: np.ndarray
    """`[N]`: those in the data."""
    lengths: np.ndarray
    """`[N, 1]`: completion tokens."""

    @property
    def errors(self) -> np.ndarray:
        """Squared, of each answer."""
        return np.square(self.scores[:, 0] - self.labels)

    @property
    def length_errors(self) -> np.ndarray:
        """Those of the straight line from lengths to labels that fits these very answers best, so that it is never
        worse than any constant."""
        known = np.stack([np.ones(len(self.labels)), self.lengths[:, 0]], axis=1)
        return np.square(self.labels - known @ np.linalg.lstsq(known, self.labels, rcond=None)[0])

    def record(self) -> MetricsRecord:
        """By name; `correlation` is Pearson's, None where it is not defined."""
        deviations = [np.std(self.scores[:, 0]), np.std(self.labels)]
        correlation = float(np.corrcoef(self.scores[:, 0], self.labels)[0, 1]) if min(deviations) > 0 else None
        return {
            "squared_error": float(self.errors.mean()),
            "length_squared_error": float(self.length_errors.mean()),
            "correlation": correlation,
        }

    def verdict(self) -> Verdict:
        """Squared error beside that of length alone."""
        error, of_error = mean_and_error(self.errors)
        difference_error = mean_and_error(self.length_errors - self.errors)[1]
        baseline = float(self.length_errors.mean())
        count = len(self.labels)
        name = "the line through length that fits best"
        return Verdict(
            "held-out squared error", error, of_error, name, baseline, difference_error, count, lower_is_better=True
        )

    def lines(self) -> list[str]:
        """For people, beside the verdict."""
        correlation = self.record()["correlation"]
        return [] if correlation is None else [f"held-out scores: correlation {correlation:.3f} with those in the data"]

    def draw(self, path: epath.PathLike) -> None:
        """A picture of the scores, and of each beside the one in the data."""

        def of_labels(axis: "Axes") -> None:
            both = [min(self.labels.min(), self.scores.min()), max(self.labels.max(), self.scores.max())]
            axis.plot(both, both, color="gray", linewidth=1, linestyle="--")
            axis.plot(self.labels, self.scores[:, 0], "o", color=_BLUE, markersize=4, alpha=0.6)
            axis.set(title="Each answer", xlabel="score in the data", ylabel="score of the model")

        title = f"squared error {self.errors.mean():.3f} on {len(self.labels):,} answers"
        _draw(path, title, {"model": self.scores[:, 0], "data": self.labels}, of_labels)


_BLUE, _RED = "#1f4e8c", "#d1495b"


def _is_greater(pairs: np.ndarray) -> np.ndarray:
    """1 where the first of two is greater, one half where they are equal or no numbers, else 0."""
    return (1 + np.nan_to_num(np.sign(pairs[:, 0] - pairs[:, 1]))) / 2


def _draw(path: epath.PathLike, title: str, groups: dict[str, np.ndarray], second: Callable[["Axes"], None]) -> None:
    """A PNG of the histograms of some groups of scores, and of a second panel."""
    from matplotlib.figure import Figure  # made without pyplot, it has no global state and needs no display

    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    every = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(every, bins=min(30, max(8, len(every) // 6)))
    for (name, values), color in zip(groups.items(), (_BLUE, _RED), strict=True):
        left.hist(values, bins=edges, alpha=0.5, color=color, label=name)
        left.axvline(values.mean(), color=color, linewidth=1.5)
    left.set(title="Scores", xlabel="score", ylabel="answers")
    left.legend(frameon=False, fontsize=9)
    second(right)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(epath.Path(path), picture.getvalue())
