"""What is said of the scores of a reward model, by hand."""

import math

import numpy as np
import pytest
from matplotlib.image import imread

from llama_jax.runs.score_report import PairReport, ScoredReport


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def pairs(margins, lengths) -> PairReport:
    scores = np.array([[margin / 2, -margin / 2] for margin in margins])
    return PairReport(scores, np.array(lengths, float))


def test_accuracy_stands_beside_that_of_length_alone():
    report = pairs([2.0, 1.0, -1.0, 0.0], [[3, 1], [3, 1], [5, 1], [2, 4]])
    record = report.record()
    assert record["accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert record["accuracy_standard_error"] == pytest.approx(np.std([1, 1, 0, 0.5], ddof=1) / 2)
    assert (record["length_accuracy"], record["reward_margin"]) == (0.75, 0.5)
    verdict = report.verdict()
    assert (verdict.baseline_name, verdict.baseline) == ("preferring the longer answer", 0.75)
    assert verdict.difference_error == pytest.approx(np.std([0, 0, -1, 0.5], ddof=1) / 2)
    shorter = pairs([1.0] * 3, [[1, 3], [1, 3], [2, 1]]).verdict()
    assert (shorter.baseline_name, shorter.baseline) == ("preferring the shorter answer", pytest.approx(2 / 3))


def test_confidence_is_compared_with_accuracy_in_bins():
    margins = [logit(0.55)] * 3 + [-logit(0.55)] + [logit(0.95)] * 2 + [-logit(0.85)] * 2
    report = pairs(margins, [[1, 1]] * 8)
    assert [(round(each.confidence, 6), each.accuracy, each.count) for each in report.bins] == [
        (0.55, 0.75, 4),
        (0.85, 0.0, 2),
        (0.95, 1.0, 2),
    ]
    assert report.record()["calibration_error"] == pytest.approx((4 * 0.2 + 2 * 0.85 + 2 * 0.05) / 8)
    assert pairs([1e3], [[1, 1]]).bins[0].confidence == 1.0


def test_scored_answers_are_compared_with_the_best_line_through_their_lengths():
    lengths, labels = np.array([[1.0], [2], [3], [4]]), np.array([0.0, 3, 0, 3])
    report = ScoredReport(np.array([[0.5], [2.5], [0.5], [2.5]]), labels, lengths)
    slope = np.polyfit(lengths[:, 0], labels, 1)
    record = report.record()
    assert (record["squared_error"], record["correlation"]) == (0.25, pytest.approx(1))
    assert record["length_squared_error"] == pytest.approx(np.square(labels - np.polyval(slope, lengths[:, 0])).mean())
    assert ScoredReport(np.ones((4, 1)), labels, lengths).record()["correlation"] is None
    assert report.verdict().difference == pytest.approx(record["length_squared_error"] - 0.25)


@pytest.mark.parametrize("of", ["pairs", "scores"])
def test_the_picture_has_both_groups_in_colours_of_their_own(of, tmp_path):
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, (60, 2))
    report = PairReport(random.normal([1, 0], 1, (60, 2)), lengths)
    if of == "scores":
        labels = random.integers(0, 6, 60).astype(float)
        report = ScoredReport(labels[:, None] + random.normal(0, 1, (60, 1)), labels, lengths[:, :1])
    report.draw(tmp_path / "scores.png")
    picture = imread(tmp_path / "scores.png")[..., :3]
    assert picture.shape == (462, 1155, 3)
    blue, red = picture[..., 2] - picture[..., 0], picture[..., 0] - picture[..., 2]
    assert (blue > 0.2).mean() > 0.01 and (red > 0.2).mean() > 0.01
