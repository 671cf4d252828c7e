"""The report of a run as one HTML page, with everything in it."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_jax.instruct.pool import Candidate

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2733; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; width: 100% }
th { white-space: nowrap }
td, th { text-align: left; padding: .3em .8em .3em 0; vertical-align: top }
tr + tr td { border-top: 1px solid #e4e8ee }
svg { width: 100%; height: auto }
.half { max-width: 620px }
pre { white-space: pre-wrap; font: inherit; margin: 0 }
.gray { color: #8a8f98 }
"""
_EXAMPLES, _DROPPED_EACH = 20, 3


def report_page(name: str, found: Mapping[str, Any], candidates: Sequence[Candidate], svgs: Sequence[bytes]) -> str:
    """The page, with the pictures of the run and of its seeds. Whatever a model wrote stands in it as text."""
    funnel = found["funnel"]
    kept = [candidate for candidate in candidates if candidate.reason is None]
    reasons = [[reason.replace("_", " "), count, _share(count, funnel)] for reason, count in funnel["dropped"].items()]
    rows = [["kept", funnel["kept"], _share(funnel["kept"], funnel)], *reasons]
    pairs = [[f"{pair['rouge_l']:.3f}", pair["instruction"], pair["like"]] for pair in found["most_similar_pairs"]]
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{funnel['requests']:,} requests in {funnel['rounds']:,} rounds proposed {funnel['proposed']:,} "
        f"instructions; {funnel['kept']:,} were kept ({funnel['kept_fraction']:.0%}), with {funnel['examples']:,} "
        f"examples, {found['with_input']:,} of them with an input. {found['classification']:,} are classification.</p>",
        _picture(svgs[0]),
        "<h2>Kept and dropped</h2>",
        _table(["", "instructions", "share"], rows),
        "<h2>The most similar of what was kept</h2>",
        _table(["ROUGE-L", "instruction", "like"], pairs),
        "<h2>Kept</h2>",
        _table(["instruction", "input", "output"], _spread(kept, _EXAMPLES)),
        "<h2>Dropped</h2>",
        _table(["reason", "instruction"], _dropped(candidates)),
        "<h2>Seeds</h2>",
        f'<div class="half">{_picture(svgs[1])}</div>',
    ]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _picture(svg: bytes) -> str:
    return svg[svg.index(b"<svg") :].decode()


def _share(count: int, funnel: Mapping[str, Any]) -> str:
    return f"{count / max(1, funnel['proposed']):.1%}"


def _spread(kept: Sequence[Candidate], count: int) -> list[list[str]]:
    """Some of what was kept, from the beginning to the end."""
    chosen = kept[:: max(1, len(kept) // count)][:count]
    return [
        [candidate.instruction, candidate.instances[0]["input"], candidate.instances[0]["output"]]
        for candidate in chosen
    ]


def _dropped(candidates: Sequence[Candidate]) -> Iterable[list[str]]:
    shown: dict[str, int] = {}
    for candidate in candidates:
        if (reason := candidate.reason) is not None and shown.get(reason, 0) < _DROPPED_EACH:
            shown[reason] = shown.get(reason, 0) + 1
            yield [reason.replace("_", " "), candidate.instruction[:400]]


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
    lines += ["".join(_cell(value) for value in row) for row in rows]
    if len(lines) == 1:
        return '<p class="gray">none</p>'
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cell(value: Any) -> str:
    shown = f"{value:,}" if isinstance(value, int) else html.escape(str(value))
    return f"<td><pre>{shown}</pre></td>"
