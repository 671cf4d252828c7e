"""The report: its numbers are those that the runs have written, and nothing that a model wrote becomes markup."""

import json
from pathlib import Path

import pytest
from page_tags import Tags

from llama_jax.pipeline.comparison import REWARD_MODEL, Answers, Comparison
from llama_jax.pipeline.outcome import Outcome, spent_by, stage_outcome
from llama_jax.pipeline.page import report_page
from llama_jax.runs.verdict import Verdict

HOSTILE = '</pre><script>alert("x")</script><img src=x onerror=alert(1)>'
GOOD = Verdict("held-out accuracy", 0.75, 0.02, "length alone", 0.5, 0.03, 100, "%")
JUDGE = "rules.py:manners"


def scored(texts: list[str], by_model: list[float], by_judge: list[float | None]) -> Answers:
    return Answers(texts, [len(text) for text in texts], {REWARD_MODEL: [*by_model], JUDGE: by_judge})


COMPARISON = Comparison(
    ["Where is it?", HOSTILE, "Who?", "And?"],
    scored(["here", HOSTILE, "he", "so"], [0.0, 1.0, 0.5, -1.0], [1.0, 0.0, 2.0, None]),
    scored(["there!", "no", "she", HOSTILE], [1.0, 1.0 + 1e-7, 0.0, 2.0], [1.0, 1.0, 2.0, 1.0]),
)


def written(folder: Path, records: list[dict], verdict: Verdict | None) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if verdict is not None:
        (folder / "verdict.json").write_text(json.dumps(verdict.to_json()))
    return folder


@pytest.fixture
def outcome(tmp_path) -> Outcome:
    sft = [{"step": n + 1, "loss": 20.0 - n, "step_seconds": 0.5} for n in range(20)]
    sft[-1]["validation_loss"] = 3.0
    reward = [{"step": n + 1, "loss": 1.0, "accuracy": n / 10, "step_seconds": 1.0} for n in range(10)]
    ppo = [
        {
            "step": n + 1,
            "reward": n / 10,
            "kl_per_completion": 1.0 + n,
            "completion_tokens_mean": 8.0,
            "step_seconds": 4.0,
            "generation_seconds": 1.0,
            "generation_tokens_per_second": 100.0 * (n + 1),
            "update_seconds": 2.0,
            "update_tokens_per_second": 50.0,
        }
        for n in range(3)
    ]
    stages = [("sft", sft, GOOD), ("reward", reward, None), ("ppo", ppo, GOOD)]
    found = [
        stage_outcome(name, str(written(tmp_path / name, records, verdict)), is_made=name != "reward")
        for name, records, verdict in stages
    ]
    return Outcome("mine <b>", found, spent_by(found[-1], target=1.0), COMPARISON)


def test_ties_count_half_and_answers_without_a_score_nothing():
    assert COMPARISON.outcomes(REWARD_MODEL).tolist() == [1.0, 0.5, 0.0, 1.0]
    assert COMPARISON.outcomes(JUDGE).tolist() == [0.5, 1.0, 0.5]
    verdict = COMPARISON.verdict(REWARD_MODEL)
    # The deviation of 1, 0.5, 0, 1 around 0.625 is the root of 0.6875 / 3.
    assert verdict.figure == 0.625 and verdict.baseline == 0.5 and verdict.count == 4
    assert verdict.standard_error == pytest.approx((0.6875 / 3) ** 0.5 / 2)
    assert COMPARISON.verdict(JUDGE).figure == pytest.approx(2 / 3)
    assert Comparison.from_json(json.loads(json.dumps(COMPARISON.to_json()))) == COMPARISON


def test_the_numbers_are_those_of_the_runs(outcome) -> None:
    sft, reward, ppo = outcome.stages
    assert (sft.steps, sft.seconds) == (20, 10.0)
    assert [(each.first, each.last) for each in sft.measures] == [(19.5, 1.5)]
    assert [each.name for each in reward.measures] == ["loss", "accuracy"]
    assert ppo.phases == [("generation", 3.0, 200.0), ("update", 6.0, 50.0)]
    assert outcome.spent.mean == 2.5 and outcome.spent.standard_error == 0.5 and not outcome.spent.is_within
    assert outcome.spent._replace(target=1.25).is_within and outcome.spent._replace(target=None).is_within
    told = outcome.to_json()
    assert not told["believed"] and told["stages"]["reward"] is None
    assert told["stages"]["sft"]["figure"] == 0.75 and told["win_rates"][REWARD_MODEL]["figure"] == 0.625
    assert "KL spent per answer 2.50 ± 0.50 nats, target 1: more than 2 times that" in outcome.lines()


def test_a_stage_that_was_made_without_a_verdict_is_not_shown_to_have_worked(tmp_path, outcome) -> None:
    better = Comparison(["Who?"] * 20, *(scored(["a"] * 20, [x] * 20, [x] * 20) for x in (0.0, 1.0)))
    stages = [outcome.stages[0], outcome.stages[2]]
    assert Outcome("x", stages, None, better).is_believed
    unknown = stage_outcome("ppo", str(written(tmp_path / "unknown", [], None)), is_made=True)
    assert not Outcome("x", [*stages, unknown], None, better).is_believed


def test_a_judge_that_scored_nothing_is_named(outcome) -> None:
    silent = scored(["a"], [0.0], [None])
    lines = Outcome("x", outcome.stages, None, Comparison(["Who?"], silent, silent)).lines()
    assert f"no win rate by {JUDGE}: to no prompt did it score both answers" in lines


def test_what_a_model_wrote_stays_text_and_nothing_is_fetched(outcome) -> None:
    page = report_page(outcome, samples=4)
    found = Tags(page)
    assert not found.tags & {"script", "img", "link", "iframe", "object"} and found.addresses == []
    assert found.text.count(HOSTILE) == 3 and "mine <b>" in found.text
    assert "62.5 ± 23.9" in found.text and "19.5" in found.text and "2.50 ± 0.50 nats" in found.text
    assert "://" not in page and "url(" not in page and "@import" not in page


def test_a_model_of_elsewhere_without_metrics_has_a_report(tmp_path, outcome) -> None:
    stages = [stage_outcome("sft", str(tmp_path / "nowhere"), is_made=False), *outcome.stages[1:]]
    page = Tags(report_page(Outcome("x", stages, None, COMPARISON), samples=1))
    assert "taken from elsewhere" in page.text and page.text.count(HOSTILE) == 0
