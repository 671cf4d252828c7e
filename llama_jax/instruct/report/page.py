"""The report of a run as one HTML page, with everything in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_jax.core.recording.pages import html_page, section, table
from llama_jax.instruct.pool import Candidate

_STYLE = """
main { max-width: 1180px } td { white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; min-width: 7em }
.picture { background: #fff; border-radius: 12px; margin-top: 28px; overflow: hidden } .picture text { fill: #17202b }
.half { max-width: 620px }
"""
_EXAMPLES, _DROPPED_EACH = 20, 3


def report_page(name: str, found: Mapping[str, Any], candidates: Sequence[Candidate], svgs: Sequence[bytes]) -> str:
    """The page, with the pictures of the run and of its seeds. Whatever a model wrote stands in it as text."""
    funnel = found["funnel"]
    kept = [candidate for candidate in candidates if candidate.reason is None]
    counts = {"kept": funnel["kept"], **funnel["dropped"]}
    rows = [[name.replace("_", " "), f"{count:,}", _share(count, funnel)] for name, count in counts.items()]
    pairs = [[f"{pair['rouge_l']:.3f}", pair["instruction"], pair["like"]] for pair in found["most_similar_pairs"]]
    lead = (
        f"{funnel['requests']:,} requests in {funnel['rounds']:,} rounds proposed {funnel['proposed']:,} instructions; "
        f"{funnel['kept']:,} were kept ({funnel['kept_fraction']:.0%}), with {funnel['examples']:,} examples, "
        f"{found['with_input']:,} of them with an input. {found['classification']:,} are classification."
    )
    parts = [
        _picture(svgs[0], "picture"),
        section("Kept and dropped", table(["", "instructions", "share"], rows)),
        section("The most similar of what was kept", table(["ROUGE-L", "instruction", "like"], pairs)),
        section("Kept", table(["instruction", "input", "output"], _spread(kept, _EXAMPLES))),
        section("Dropped", table(["reason", "instruction"], _dropped(candidates))),
        section("Seeds", _picture(svgs[1], "picture half")),
    ]
    return html_page(name, "Self-Instruct report", lead, parts, _STYLE)


def _picture(svg: bytes, kind: str) -> str:
    return f'<div class="{kind}">{svg[svg.index(b"<svg") :].decode()}</div>'


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
