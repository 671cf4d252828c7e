"""The report of a pipeline as one HTML page with everything in it. Whatever a model wrote stands in it as text."""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from llama_jax.core.recording.pages import few_digits, html_page, section, table
from llama_jax.pipeline.charts import Chart, chart_svg
from llama_jax.pipeline.comparison import REWARD_MODEL, Comparison
from llama_jax.pipeline.outcome import Measure, Outcome, StageOutcome
from llama_jax.pipeline.page_style import STYLE
from llama_jax.runs.verdict import LEAST_ERRORS, Verdict

_TITLES = {"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}
_NAMES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "reward": "reward",
    "kl_per_completion": "KL per answer",
    "completion_tokens_mean": "answer",
}


def report_page(outcome: Outcome, samples: int) -> str:
    """The page.

    Args:
        samples: Prompts whose answers it shows, the first of those that were compared.
    """
    is_shown = "Every stage did what it is for." if outcome.is_believed else "Not every stage is shown to have worked."
    parts = [
        section("Verdicts", f'<div class="cards">{"".join(_cards(outcome))}</div>', _threshold()),
        section("Win rate over SFT", "".join(_bar(outcome, judge) for judge in outcome.win_rates), _how(outcome)),
        section("Stages", _table(outcome.stages), _tenths()),
        section("Curves", f'<div class="charts">{"".join(_charts(outcome))}</div>', _legend(outcome)),
        _times(outcome.stages[-1]),
        section("Answers side by side", _samples(outcome.comparison, samples), _first(outcome, samples)),
    ]
    return html_page(outcome.name, "RLHF report", is_shown, parts, STYLE)


def _threshold() -> str:
    return (
        f"Believed: better than its baseline by more than {LEAST_ERRORS:g} standard errors, on data never trained on."
    )


def _cards(outcome: Outcome) -> Iterable[str]:
    for stage in outcome.stages:
        title = _TITLES[stage.name]
        if stage.verdict is not None:
            yield _card(title, stage.verdict)
        else:
            origin = "made here" if stage.is_made else "taken from elsewhere"
            yield f'<article class="card"><h3>{title}</h3><p>{origin}; no verdict is kept of it</p></article>'
    if (spent := outcome.spent) is not None:
        state = "ok" if spent.is_within else "no"
        badge = "no target" if spent.target is None else "within" if spent.is_within else "too much"
        error = "" if spent.standard_error is None else f" ± {spent.standard_error:.2f}"
        beside = "the coefficient is fixed" if spent.target is None else f"target {spent.target:g} nats"
        lengths = "answers of {:.1f} tokens before, {:.1f} after".format(*outcome.tokens)
        yield _article("KL per answer", state, badge, (f"{spent.mean:.2f}{error}", "nats"), beside, lengths)


def _card(title: str, verdict: Verdict) -> str:
    state, badge = ("ok", "believed") if verdict.is_believed else ("no", "not believed")
    scale, unit = (100, " %") if verdict.unit == "%" else (1, f" {verdict.unit}" if verdict.unit else "")
    error = "" if verdict.standard_error is None else f" ± {scale * verdict.standard_error:.3g}"
    figure = f"{scale * verdict.figure:.4g}{error}"
    baseline = f"{verdict.baseline_name} {scale * verdict.baseline:.4g}{unit}"
    of_difference = verdict.difference_error
    threshold = "" if of_difference is None else f"; {LEAST_ERRORS * scale * of_difference:.3g} needed"
    way = "better" if verdict.difference >= 0 else "worse"
    gain = f"{abs(scale * verdict.difference):.3g}{unit} {way}{threshold}, on {verdict.count:,} examples"
    return _article(title, state, badge, (figure, unit), f"{verdict.name}; {baseline}", gain)


def _article(title: str, state: str, badge: str, figure: tuple[str, str], *lines: str) -> str:
    """A card with a figure and its unit."""
    number, unit = map(html.escape, figure)
    told = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return (
        f'<article class="card {state}"><h3>{html.escape(title)}<span class="badge">{badge}</span></h3>'
        f'<p class="figure">{number} <small>{unit.strip()}</small></p>{told}</article>'
    )


def _bar(outcome: Outcome, judge: str) -> str:
    outcomes, verdict = outcome.comparison.outcomes(judge), outcome.win_rates[judge]
    better, even, worse = (int(np.sum(outcomes == value)) for value in (1.0, 0.5, 0.0))
    title = html.escape(judge if judge == REWARD_MODEL else f"held-out judge {judge}")
    error = "" if verdict.standard_error is None else f" ± {100 * verdict.standard_error:.1f}"
    parts = "".join(
        f'<span class="{kind}" style="flex-grow:{count}"></span>'
        for kind, count in (("win", better), ("tie", even), ("loss", worse))
        if count
    )
    badge = "believed" if verdict.is_believed else "not believed"
    return (
        f'<div class="bar {"ok" if verdict.is_believed else "no"}"><h3>{title}<span class="badge">{badge}</span></h3>'
        f'<p class="figure">{100 * verdict.figure:.1f}{error} %</p><div class="track">{parts}<i></i></div>'
        f'<p><b class="win"></b>{better:,} better <b class="tie"></b>{even:,} equal <b class="loss"></b>{worse:,} worse'
        "</p></div>"
    )


def _how(outcome: Outcome) -> str:
    count = len(outcome.comparison.prompts)
    return (
        f"Both models answered the same {count:,} prompts that were held out; answers are compared one by one, equal "
        "ones count half, so equal models have 50 %."
    )


def _table(stages: Sequence[StageOutcome]) -> str:
    heads = ("stage", "steps", "measure", "first", "last", "time", "result")
    rows = []
    for stage in stages:
        measures = stage.measures or [None]
        for number, measure in enumerate(measures):
            own = number == 0
            steps = f"{stage.steps:,}" if stage.steps else "–"
            cells = [_TITLES[stage.name] if own else "", steps if own else "", *_measured(measure)]
            cells += [_duration(stage.seconds) if own and stage.records else "", stage.place if own else ""]
            rows.append(cells)
    return table(heads, rows)


def _measured(measure: Measure | None) -> tuple[str, str, str]:
    if measure is None:
        return "–", "", ""
    scale, unit = (100, "%") if measure.unit == "%" else (1, measure.unit)
    name = f"{_NAMES[measure.name]}{f' ({unit})' if unit else ''}"
    return name, few_digits(scale * measure.first), few_digits(scale * measure.last)


def _tenths() -> str:
    return "First and last: means over the first and the last tenth of the steps. Time: that of the steps alone."


def _charts(outcome: Outcome) -> Iterable[str]:
    sft, reward, ppo = outcome.stages
    target = None if outcome.spent is None else outcome.spent.target
    charts = (
        Chart("SFT: loss", "nats per token", sft.points("loss"), sft.points("validation_loss")),
        Chart("Reward model: accuracy", "", reward.points("accuracy"), reward.points("validation_accuracy")),
        Chart("PPO: reward", "", ppo.points("reward"), ppo.points("held_out_reward")),
        Chart("PPO: KL per answer", "nats", ppo.points("kl_per_completion"), target=target),
        Chart("PPO: answer", "tokens", ppo.points("completion_tokens_mean"), ppo.points("held_out_tokens_mean")),
        Chart("PPO: explained variance of the critic", "", ppo.points("explained_variance")),
    )
    for chart in charts:
        if chart.points:
            unit = f" <small>{html.escape(chart.unit)}</small>" if chart.unit else ""
            yield f"<figure><figcaption>{html.escape(chart.title)}{unit}</figcaption>{chart_svg(chart)}</figure>"


def _legend(outcome: Outcome) -> str:
    target = outcome.spent is not None and outcome.spent.target is not None
    return "By step. Dots: held-out data, greedy answers for PPO." + " Dashed: the target." * target


def _times(ppo: StageOutcome) -> str:
    if not ppo.phases:
        return ""
    whole = ppo.seconds
    rows = []
    for name, seconds, speed in ppo.phases:
        cells = [name, _duration(seconds), f"{seconds / whole:.0%}", "" if speed is None else f"{speed:,.0f}"]
        rows.append(cells)
    return section("Where the time of PPO went", table(("phase", "time", "share", "tokens per second"), rows))


def _samples(comparison: Comparison, count: int) -> str:
    shown_ = [
        f'<article class="sample"><p class="prompt">{html.escape(prompt)}</p><div class="pair">'
        f"{_answer('SFT', comparison, False, number)}{_answer('PPO', comparison, True, number)}</div></article>"
        for number, prompt in enumerate(comparison.prompts[:count])
    ]
    return "".join(shown_)


def _answer(title: str, comparison: Comparison, is_after: bool, number: int) -> str:
    answers = comparison.after if is_after else comparison.before
    scores = ", ".join(
        f"{judge} {few_digits(score)}" for judge, each in answers.scores.items() if (score := each[number]) is not None
    )
    kind = "after" if is_after else "before"
    return (
        f'<div class="{kind}"><h4>{title}</h4><pre>{html.escape(answers.texts[number])}</pre>'
        f"<small>{html.escape(scores)}</small></div>"
    )


def _first(outcome: Outcome, count: int) -> str:
    return f"The first {min(count, len(outcome.comparison.prompts)):,} of the prompts that were compared, not chosen."


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
