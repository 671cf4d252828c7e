"""Reports as one HTML page with everything in it: for a screen and a phone, by day and by night, without a network.

Whatever is handed over as text stands there as text. Knows no report."""

import html
import re
from collections.abc import Iterable, Sequence

STYLE = """
:root { --ink: #17202b; --soft: #5d6b7b; --line: #e1e7ee; --page: #f5f7fa; --card: #fff; --blue: #2b63d9;
  --green: #0c8f63; --greenish: #dff5ea; --red: #c03d4f; --reddish: #fde6e8; --gray: #b9c3cf }
@media (prefers-color-scheme: dark) { :root { --ink: #e7edf4; --soft: #98a6b5; --line: #2a3441; --page: #10161d;
  --card: #18202a; --blue: #7ea6ff; --green: #4fd3a0; --greenish: #12362a; --red: #ff8f9c; --reddish: #43202a;
  --gray: #4a5766 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  sans-serif; -webkit-text-size-adjust: 100% }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 1.9em; line-height: 1.2; margin: 0; overflow-wrap: anywhere; letter-spacing: -.01em }
h2 { font-size: 1.2em; margin: 44px 0 6px } h3 { font-size: 1em; margin: 0 } h4 { margin: 0; font-size: .8em;
  color: var(--soft); font-weight: 600 }
p { margin: 0 } .eyebrow { color: var(--blue); font-weight: 600 } .lead { color: var(--soft); font-size: 1.1em;
  margin-top: 6px }
.none, .note { color: var(--soft) } .note { margin-bottom: 14px; max-width: 46em } small { color: var(--soft);
  font-size: .85em }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)) }
.card, .bar, figure, .sample, .wide { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; margin: 0 }
.wide { overflow-x: auto; padding: 4px 16px } table { border-collapse: collapse; width: 100%; font-variant-numeric:
  tabular-nums } th, td { text-align: left; padding: 8px 16px 8px 0; white-space: nowrap } th { color: var(--soft);
  font-weight: 600; font-size: .87em } tr + tr td { border-top: 1px solid var(--line) }
figcaption { font-weight: 600; margin-bottom: 4px } figcaption small { font-weight: 400 }
svg { display: block; width: 100%; height: auto } svg text { font-size: 10.5px; fill: var(--soft) }
.grid { stroke: var(--line) }
pre { font: inherit; margin: 2px 0 6px; white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 560px) { main { padding: 20px 14px 48px } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Even if text became markup by a mistake, nothing would be run and nothing fetched."""
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def html_page(title: str, kind: str, lead: str, parts: Iterable[str], style: str = "") -> str:
    """The page.

    Args:
        kind: What it is a report of, such as `RLHF report`.
        lead: What comes of it, in a sentence.
        parts: Sections, as markup.
        style: What the report adds to the common style.
    """
    name = html.escape(title)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="color-scheme" content="light dark"><title>{name}</title><style>{STYLE}{style}</style>'
    )
    header = (
        f'<header><p class="eyebrow">{html.escape(kind)}</p><h1>{name}</h1>'
        f'<p class="lead">{html.escape(lead)}</p></header>'
    )
    body = "\n".join([header, *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def section(title: str, content: str, note: str = "") -> str:
    """A part of a page: its title, a note, and the content, which is markup."""
    told = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{told}{content}</section>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, which scrolls by itself where it is wider than the page; `none` if it has no row."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    if not body:
        return '<p class="none">none</p>'
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def visible(text: str) -> str:
    """The text, with the numbers of characters that one cannot see, or that would turn the text around."""
    return _UNSEEN.sub(lambda found: f"⟨{ord(found[0]):04X}⟩", text)


def few_digits(value: float) -> str:
    """A number in few digits."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
