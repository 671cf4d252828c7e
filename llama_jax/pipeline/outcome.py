"""What came of a pipeline in numbers, read from what its runs have written."""

import json
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from llama_jax.core.recording.metrics import MetricsRecord, read_metrics
from llama_jax.core.run_directory import RunDirectory
from llama_jax.pipeline.comparison import Comparison
from llama_jax.runs.verdict import LEAST_ERRORS, Verdict, mean_and_error

MOST_KL = 2.0
"""How many times its target the divergence of an answer may be."""
_MEASURES = {
    "sft": (("loss", "nats per token"),),
    "reward": (("loss", "nats per pair"), ("accuracy", "%")),
    "ppo": (("reward", ""), ("kl_per_completion", "nats"), ("completion_tokens_mean", "tokens")),
}
"""By stage: the metrics that tell how it went, and their units."""
PHASES = ("generation", "scoring", "layout", "update")
"""Of an iteration of PPO, as metrics name them."""


class Measure(NamedTuple):
    """A metric, over a tenth of the steps at the beginning and at the end."""

    name: str
    unit: str
    first: float
    last: float


@dataclass(frozen=True)
class StageOutcome:
    """What came of a stage."""

    name: str
    place: str
    """Of its result."""
    is_made: bool
    """Or taken from elsewhere."""
    records: list[MetricsRecord]
    verdict: Verdict | None

    @property
    def steps(self) -> int:
        """Made in all of the run."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def seconds(self) -> float:
        """In steps alone."""
        return sum(float(record["step_seconds"]) for record in self.records)

    @property
    def measures(self) -> list[Measure]:
        """How it went, as far as it was recorded."""
        found = []
        for name, unit in _MEASURES[self.name]:
            if values := self.values(name):
                tenth = max(1, len(values) // 10)
                first, last = (float(np.mean(part)) for part in (values[:tenth], values[-tenth:]))
                found.append(Measure(name, unit, first, last))
        return found

    def values(self, name: str) -> list[float]:
        """A metric of all steps that have it."""
        return [value for _, value in self.points(name)]

    def points(self, name: str) -> list[tuple[float, float]]:
        """The same with the steps."""
        known = [(float(record["step"]), record.get(name)) for record in self.records]
        return [(step, float(value)) for step, value in known if isinstance(value, int | float)]

    @property
    def phases(self) -> list[tuple[str, float, float | None]]:
        """(name, seconds of all iterations, tokens by second) of each phase of an iteration, of a run of PPO."""
        found = []
        for phase in PHASES:
            if spent := self.values(f"{phase}_seconds"):
                speeds = self.values(f"{phase}_tokens_per_second")
                tokens = sum(seconds * speed for seconds, speed in zip(spent, speeds, strict=True)) if speeds else None
                found.append((phase, sum(spent), None if tokens is None else tokens / sum(spent)))
        return found


class Spent(NamedTuple):
    """Divergence of an answer from the model that PPO began with, over the last tenth of the iterations."""

    mean: float
    """Nats."""
    standard_error: float | None
    target: float | None

    @property
    def is_within(self) -> bool:
        """Whether it is not more than it may be; always, where there is no target."""
        return self.target is None or self.mean <= MOST_KL * self.target

    def line(self) -> str:
        """For people."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        shown = f"KL spent per answer {self.mean:.2f}{error} nats"
        if self.target is None:
            return f"{shown}; the coefficient is fixed, there is no target"
        return f"{shown}, target {self.target:g}: {'within' if self.is_within else 'more than'} {MOST_KL:g} times that"


@dataclass(frozen=True)
class Outcome:
    """What came of all."""

    name: str
    """Of the run directory."""
    stages: list[StageOutcome]
    spent: Spent | None
    comparison: Comparison

    @property
    def win_rates(self) -> dict[str, Verdict]:
        """By judge."""
        found = {judge: self.comparison.verdict(judge) for judge in self.comparison.judges}
        return {judge: verdict for judge, verdict in found.items() if verdict is not None}

    @property
    def verdicts(self) -> list[Verdict]:
        """Of the stages that have one, and of the comparison."""
        return [*[stage.verdict for stage in self.stages if stage.verdict is not None], *self.win_rates.values()]

    @property
    def tokens(self) -> tuple[float, float]:
        """Mean length of the compared answers, before and after PPO."""
        before, after = (float(np.mean(each.tokens)) for each in (self.comparison.before, self.comparison.after))
        return before, after

    @property
    def is_believed(self) -> bool:
        """Whether every stage that was made is shown to have done what it is for, by more than chance, at a divergence
        that was allowed."""
        if any(stage.is_made and stage.verdict is None for stage in self.stages):
            return False
        return all(each.is_believed for each in self.verdicts) and (self.spent is None or self.spent.is_within)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{stage.name}: {stage.verdict.line()}" for stage in self.stages if stage.verdict is not None]
        lines += [verdict.line() for verdict in self.win_rates.values()]
        unknown = [judge for judge in self.comparison.judges if judge not in self.win_rates]
        lines += [f"no win rate by {judge}: to no prompt did it score both answers" for judge in unknown]
        lines += [] if self.spent is None else [self.spent.line()]
        return [*lines, "answers of {:.1f} tokens before PPO, {:.1f} after".format(*self.tokens)]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the thresholds that they are judged by."""
        spent = None if self.spent is None else {**self.spent._asdict(), "within": self.spent.is_within}
        return {
            "believed": self.is_believed,
            "least_errors": LEAST_ERRORS,
            "most_kl": MOST_KL,
            "stages": {stage.name: None if stage.verdict is None else stage.verdict.to_json() for stage in self.stages},
            "win_rates": {judge: verdict.to_json() for judge, verdict in self.win_rates.items()},
            "kl_per_answer": spent,
            "tokens_per_answer": dict(zip(("before", "after"), self.tokens, strict=True)),
        }


def stage_outcome(name: str, place: str, *, is_made: bool) -> StageOutcome:
    """What a run has written, or nothing where the model is not from a run."""
    run = RunDirectory(place)
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    return StageOutcome(name, place, is_made, records, _verdict_at(run.verdict))


def spent_by(ppo: StageOutcome, target: float | None) -> Spent | None:
    """The divergence at the end; None where none was measured."""
    values = ppo.values("kl_per_completion")
    if not values:
        return None
    mean, error = mean_and_error(np.array(values[-max(2, len(values) // 10) :]))
    return Spent(mean, error, target)


def _verdict_at(path: epath.Path) -> Verdict | None:
    if not path.exists():
        return None
    values, known = json.loads(path.read_text()), {field.name for field in fields(Verdict)}
    return Verdict(**{name: value for name, value in values.items() if name in known})
