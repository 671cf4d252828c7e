"""A verdict says what came of a stage, and believes it only where chance would not do."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from llama_jax.core.run_directory import RunDirectory
from llama_jax.runs.verdict import Verdict, mean_and_error, record_verdict

GOOD = Verdict("held-out accuracy", 0.75, 0.0559, "length alone", 0.5, 0.0725, 60, "%")


def test_the_standard_error_is_that_of_the_sample():
    mean, error = mean_and_error(np.array([1.0, 0, 1, 1]))
    assert (mean, error) == (0.75, pytest.approx(math.sqrt((3 * 0.25**2 + 0.75**2) / 3 / 4)))
    assert mean_and_error(np.ones(1)) == (1.0, None)


def test_a_figure_is_believed_from_two_standard_errors_and_twenty_examples_on():
    assert GOOD.is_believed
    assert not replace(GOOD, difference_error=0.126).is_believed
    assert not replace(GOOD, difference_error=None).is_believed
    assert not replace(GOOD, count=19).is_believed
    assert not replace(GOOD, lower_is_better=True).is_believed
    assert replace(GOOD, baseline=1.0, lower_is_better=True).is_believed
    assert not replace(GOOD, figure=0.5, difference_error=0.0).is_believed


@pytest.mark.parametrize(
    "changes, judgement",
    [
        ({}, "length alone 50.0 %: 25.0 ± 7.2 % better, believed"),
        ({"baseline": 0.7}, "70.0 %: 5.0 ± 7.2 % better, not believed: less than 2 standard errors above chance"),
        ({"baseline": 0.8}, "80.0 %: 5.0 ± 7.2 % worse, not believed: less than 2 standard errors above chance"),
        ({"count": 3}, "25.0 ± 7.2 % better, not believed: fewer than 20 examples tell nothing"),
    ],
)
def test_the_line_says_figure_error_baseline_and_judgement(changes, judgement, tmp_path, capsys):
    verdict = replace(GOOD, **changes)
    with RunDirectory(tmp_path) as run:
        run.begin()
        record_verdict(run, verdict)
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"verdict: held-out accuracy 75.0 ± 5.6 % on {verdict.count} examples; length alone ")
    assert line.endswith(judgement)
    kept = json.loads((tmp_path / "verdict.json").read_text())
    assert (kept["figure"], kept["believed"]) == (0.75, verdict.is_believed)
    assert kept["difference"] == pytest.approx(0.75 - verdict.baseline)
