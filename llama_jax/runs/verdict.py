"""Whether a stage of training has worked: a figure on what it never saw, its standard error, and what would have been
reached without it."""

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np

from llama_jax.core.run_directory import RunDirectory

LEAST_ERRORS = 2.0
"""How many standard errors a figure must be better than its baseline: by chance one in 44 is."""
FEWEST = 20
"""Examples of which fewer tell nothing: their standard error is itself a guess."""


@dataclass(frozen=True)
class Verdict:
    """A figure beside a baseline."""

    name: str
    """What was measured, such as `held-out accuracy`."""
    figure: float
    standard_error: float | None
    """Of the figure; None: not known."""
    baseline_name: str
    """What the figure must be better than, as a noun: `length alone`, `before training`."""
    baseline: float
    """The figure that this has on the same examples."""
    difference_error: float | None
    """Standard error of figure minus baseline, paired by example; None: not known."""
    count: int
    """Examples that the figure is of."""
    unit: str = ""
    """What follows a number; `%`: figures are fractions, and shown in hundredths."""
    lower_is_better: bool = False

    @property
    def difference(self) -> float:
        """How much better the figure is than the baseline."""
        return self.baseline - self.figure if self.lower_is_better else self.figure - self.baseline

    @property
    def is_believed(self) -> bool:
        """Whether the difference is more than chance makes."""
        error = self.difference_error
        return self.count >= FEWEST and error is not None and self.difference > LEAST_ERRORS * error

    def figures(self) -> str:
        """Figure and baseline, for people."""
        figure = f"{self.name} {self._shown(self.figure, self.standard_error)} on {self.count:,} examples"
        return f"{figure}; {self.baseline_name} {self._shown(self.baseline)}"

    def line(self) -> str:
        """The same with what is to be thought of it."""
        return f"verdict: {self.figures()}: {self._judgement()}"

    def _judgement(self) -> str:
        better = f"{self._shown(abs(self.difference), self.difference_error)} "
        better += "better" if self.difference >= 0 else "worse"
        if self.count < FEWEST:
            return f"{better}, not believed: fewer than {FEWEST} examples tell nothing"
        if not self.is_believed:
            return f"{better}, not believed: less than {LEAST_ERRORS:g} standard errors above chance"
        return f"{better}, believed"

    def _shown(self, value: float, error: float | None = None) -> str:
        numbers = [value] if error is None else [value, error]
        shown = " ± ".join(
            f"{100 * n:.1f}" if self.unit == "%" else f"{n:.4{'f' if abs(n) < 1e6 else 'g'}}" for n in numbers
        )
        return f"{shown} {self.unit}".rstrip()

    def to_json(self) -> dict[str, object]:
        """As JSON values, with what follows from them."""
        return dataclasses.asdict(self) | {"difference": self.difference, "believed": self.is_believed}


def record_verdict(run: RunDirectory, verdict: Verdict) -> None:
    """Say it, and keep it as `verdict.json`."""
    run.say(verdict.line())
    run.keep(run.verdict, json.dumps(verdict.to_json(), indent=2) + "\n")


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean, and its standard error from the sample's deviation (n - 1); of fewer than two values it is not known.

    Args:
        values: one or more.
    """
    count = len(values)
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None
