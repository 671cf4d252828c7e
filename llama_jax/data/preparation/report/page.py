"""The report of a preparation as one HTML page. Whatever a document holds stands in it as text."""

import html
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_jax.core.recording.pages import few_digits, html_page, section, table, visible
from llama_jax.data.preparation.report.asked import Asked
from llama_jax.data.preparation.report.distribution import distribution_svg, quantile
from llama_jax.data.preparation.report.funnel import Amount, Funnel, Step, in_bytes, titled
from llama_jax.data.preparation.report.style import STYLE

_SHOWN_TAGS, _TAG_COLUMNS = 30, 10
_NAME = 40  # characters


def preparation_page(asked: Asked, funnel: Funnel, told: Mapping[str, Any]) -> str:
    """The page.

    Args:
        told: The tally, as `Tally.to_json` gives it.
    """
    parts = [
        section("Funnel", _steps(funnel), _reading()),
        section("By source", _sources(funnel), "Documents and text that each step took. Shares: of what was read."),
        *_edits(told["sources"]),
        *(section(_title(kind), _tags(kind, told["sources"]), _of_tags()) for kind in _kinds(told["sources"])),
        *_distributions(told["measures"], asked.bounds),
        *_overlaps(asked.evaluations),
        section("What was taken out", _samples(told["samples"], funnel.steps), _chosen()),
        section("What was kept", _articles(told["samples"]["kept"].get("all", []))),
        section("What nobody looked at", _list(asked.unlooked)),
    ]
    return html_page(asked.corpus, "Preparation report", _lead(funnel), parts, STYLE)


def _lead(funnel: Funnel) -> str:
    return (
        f"{_share(funnel.kept.documents, funnel.read.documents)} of the documents and "
        f"{_share(funnel.kept.bytes, funnel.read.bytes)} of the text were kept: {funnel.kept.documents:,} of "
        f"{funnel.read.documents:,} documents, {in_bytes(funnel.kept.bytes)} of {in_bytes(funnel.read.bytes)}."
    )


def _reading() -> str:
    return (
        "Each bar is what came to a step, as a part of all that was read; what it took is red. "
        "The names lead to samples."
    )


def _of_tags() -> str:
    return "Of the documents that were looked at; those that were dropped for it are red."


def _of_measures() -> str:
    return "Dashed: where a rule drops. Percentiles are rounded down to the start of a bin, which is 11 % at most."


def _chosen() -> str:
    return (
        "A few documents for each step, chosen by a hash of the text, so by chance; of equal texts the first. Of long "
        "ones the beginning, the end, and the words they were dropped for. Of lines: those that went."
    )


def _steps(funnel: Funnel) -> str:
    heads = '<span class="name"></span><span>documents</span><span>text</span>'
    rows = [f'<li class="heads" aria-hidden="true">{heads}</li>', _row("read", funnel.read, None, funnel.read)]
    for number, step in enumerate(funnel.steps):
        name = f'<a href="#step-{number}">{html.escape(titled(step))}</a>'
        rows.append(_row(name, step.left, step.taken, funnel.read))
    rows.append(_row("kept", funnel.kept, None, funnel.read))
    return f'<ol class="steps">{"".join(rows)}</ol>'


def _row(name: str, left: Amount, taken: Amount | None, whole: Amount) -> str:
    """A line of bars.

    Args:
        name: Markup.
        taken: None for what no step took.
    """
    amounts = []
    for title, shown in (("documents", "{:,}".format), ("bytes", in_bytes)):
        here, gone, all_ = (getattr(each, title) for each in (left, taken or Amount(), whole))
        number = here if taken is None else gone
        text = f"{'' if taken is None else '−'}{shown(number)} <small>{_share(number, all_)}</small>"
        told = text if number else "–"
        amounts.append(f'<span class="amount">{_flow(here, gone, all_)}<span>{told}</span></span>')
    kind = ' class="whole"' if taken is None else ""
    return f'<li{kind}><span class="name">{name}</span>{"".join(amounts)}</li>'


def _flow(left: int, taken: int, whole: int) -> str:
    widths = [f"{100 * part / max(1, whole):.2f}%" for part in (left, taken)]
    red = f'<u style="width:{widths[1]}"></u>' if taken else ""
    return f'<span class="flow" aria-hidden="true"><i style="width:{widths[0]}"></i>{red}</span>'


def _sources(funnel: Funnel) -> str:
    heads = ["source", "read", *(titled(step) for step in funnel.steps), "kept"]
    head = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in heads)
    rows = []
    for name, read in funnel.read_by_source.items():
        cells = [_cell(read, read, is_rate=False)]
        cells += [_cell(step.by_source.get(name, Amount()), read, is_rate=True) for step in funnel.steps]
        cells.append(_cell(funnel.kept_by_source[name], read, is_rate=False))
        rows.append(f"<tr><td>{html.escape(_short(name))}</td>{''.join(cells)}</tr>")
    return (
        '<div class="wide numbers" tabindex="0" role="region" aria-label="By source">'
        f"<table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _cell(amount: Amount, read: Amount, *, is_rate: bool) -> str:
    if not any(amount):
        return '<td class="none">–</td>'
    by_bytes = not amount.documents
    share = amount.bytes / max(1, read.bytes) if by_bytes else amount.documents / max(1, read.documents)
    rate = f' class="rate" style="--rate:{min(60.0, 100 * share):.0f}%"' if is_rate else ""
    told = "" if amount == read else f" · {_share(amount.bytes, read.bytes)}"
    first = "" if by_bytes else f"{amount.documents:,}"
    second = f"<small>{in_bytes(amount.bytes)}{told}</small>" if amount.bytes else ""
    return f"<td{rate}>{first}{second}</td>"


def _edits(sources: Mapping[str, Any]) -> Iterable[str]:
    documents, size, lines = Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    for source in sources.values():
        for rule, counts in source.get("edited", {}).items():
            documents[rule] += counts["documents"]
            size[rule] += counts["bytes"]
            lines[rule].update(counts.get("lines", {}))
    rows = []
    for rule in sorted(documents):
        told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(lines[rule].items()))
        rows.append([rule.replace("_", " "), f"{documents[rule]:,}", in_bytes(size[rule]), told])
    if rows:
        yield section("Lines taken out", table(("rule", "documents", "text", "lines"), rows))


def _kinds(sources: Mapping[str, Any]) -> list[str]:
    return sorted({kind for source in sources.values() for kind in source.get("tags", {})})


def _title(kind: str) -> str:
    return {"language": "Languages"}.get(kind, kind.replace("_", " ").capitalize())


def _tags(kind: str, sources: Mapping[str, Any]) -> str:
    """A bar for each value, and where there are several sources, a table of them."""
    documents, size, dropped = Counter[str](), Counter[str](), Counter[str]()
    for source in sources.values():
        for value, counts in source.get("tags", {}).get(kind, {}).items():
            documents[value] += counts["documents"]
            size[value] += counts["bytes"]
            dropped[value] += counts["dropped"]
    order = sorted(documents, key=lambda value: (-documents[value], value))
    whole = Amount(documents.total(), size.total())
    rows = []
    for value in order[:_SHOWN_TAGS]:
        text = f"{documents[value]:,} <small>{_share(documents[value], whole.documents)}</small>"
        bar = _flow(documents[value] - dropped[value], dropped[value], documents[order[0]])
        amount = f'<span class="amount">{bar}<span>{text}</span></span>'
        told = f" <small>{dropped[value]:,} dropped</small>" if dropped[value] else ""
        bytes_ = f"<span>{in_bytes(size[value])}{told}</span>"
        rows.append(f'<li><span class="name">{html.escape(visible(value))}</span>{amount}{bytes_}</li>')
    if rest := order[_SHOWN_TAGS:]:
        text = f"<span>{sum(documents[value] for value in rest):,} documents</span>"
        rows.append(f'<li><span class="name">{len(rest)} others</span>{text}</li>')
    bars = f'<ol class="steps">{"".join(rows)}</ol>'
    return bars if len(sources) == 1 else f"{bars}{_tags_by_source(kind, sources, order[:_TAG_COLUMNS])}"


def _tags_by_source(kind: str, sources: Mapping[str, Any], values: Sequence[str]) -> str:
    rows = []
    for name, source in sources.items():
        found = source.get("tags", {}).get(kind, {})
        counts = [found.get(value, {}).get("documents", 0) for value in values]
        others = sum(each["documents"] for each in found.values()) - sum(counts)
        rows.append([_short(name), *(f"{count:,}" if count else "–" for count in (*counts, others))])
    content = table(("source", *map(visible, values), "others"), rows).replace('"wide"', '"wide numbers"', 1)
    return f"<details><summary>By source</summary>{content}</details>"


def _distributions(measures: Mapping[str, Mapping[str, int]], bounds: Mapping[str, Sequence[float]]) -> Iterable[str]:
    figures = []
    order = [name for name in bounds if name in measures]
    for name in [*order, *sorted(set(measures) - set(order))]:
        bins = measures[name]
        if set(bins) == {"0"}:
            continue  # nothing to see
        title = html.escape(name.replace("_", " "))
        tenth, half, most = (few_digits(quantile(bins, share)) for share in (0.1, 0.5, 0.9))
        svg = distribution_svg(name, bins, bounds.get(name, ()))
        note = f"median {half}, 10th percentile {tenth}, 90th {most}"
        figures.append(f"<figure><figcaption>{title}</figcaption>{svg}<p>{note}</p></figure>")
    if figures:
        yield section("Distributions", f'<div class="charts">{"".join(figures)}</div>', _of_measures())


def _overlaps(evaluations: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    rows = [
        [visible(file), *(f"{counts[name]:,}" for name in ("records", "touched", "too_short", "documents"))]
        for file, counts in evaluations.items()
    ]
    if rows:
        head = ("file", "records", "of these in documents", "too short to be found", "documents")
        yield section("Overlaps with evaluation files", table(head, rows))


def _samples(samples: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], steps: Sequence[Step]) -> str:
    parts = []
    for number, step in enumerate(steps):
        count = step.taken.documents
        taken = f"{count:,} document{'s' * (count != 1)}, {in_bytes(step.taken.bytes)}"
        told = in_bytes(step.taken.bytes) if step.is_edit else taken
        title = f"{html.escape(titled(step))}<small>{told}</small>"
        found = samples["edited" if step.is_edit else "dropped"][step.name]
        parts.append(f'<details open id="step-{number}"><summary>{title}</summary>{_articles(found)}</details>')
    return "".join(parts) or '<p class="none">nothing</p>'


def _articles(samples: Sequence[Mapping[str, Any]]) -> str:
    return f'<div class="samples">{"".join(map(_article, samples))}</div>'


def _article(sample: Mapping[str, Any]) -> str:
    facts = [f"document {sample['document']:,}, {_short(sample['source'])}"]
    facts += [f"{sample['characters']:,} characters"] * bool(sample["characters"])
    facts += [
        f"{name.replace('_', ' ')} {_value(value)}"
        for name, value in sample["measured"].items()
        if name != "characters"
    ]
    told = html.escape(visible(" · ".join(facts)))
    text = html.escape(visible(sample["excerpt"]))
    shown = f'<pre dir="auto" tabindex="0">{text}</pre>' if text.strip() else ""
    return f'<article class="sample"><p>{told}</p>{shown}</article>'


def _value(value: Any) -> str:
    return few_digits(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(each)}</li>' for each in sentences)}</ul>"


def _short(name: str) -> str:
    """The name of a source, or its beginning and its end."""
    return visible(name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 :]}")


def _share(part: int, whole: int) -> str:
    """A share that is 0 or 100 % only where it is exactly that."""
    share = 100 * part / max(1, whole)
    if 0 < share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if part < whole and share >= 99.95 else f"{share:.1f} %"
