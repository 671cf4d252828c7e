"""Writes the report of a preparation beside its shards."""

import json
from collections.abc import Mapping, Sequence

from etils import epath

from llama_jax.core.files import write_whole
from llama_jax.data.preparation.report.funnel import Funnel, funnel_of
from llama_jax.data.preparation.report.page import preparation_page
from llama_jax.data.preparation.report.tally import Tally

REPORT, PAGE = "report.json", "report.html"
"""Files of a prepared directory."""


def write_report(
    directory: epath.Path, name: str, tally: Tally, bounds: Mapping[str, Sequence[float]], unlooked: Sequence[str]
) -> Funnel:
    """Write `report.json` and `report.html`, whose bytes depend on the arguments alone.

    Args:
        name: Of the corpus.
        bounds: Of each measure, the values at which rules drop a document.
        unlooked: What nobody looked at, in sentences.
    """
    told = tally.to_json()
    funnel = funnel_of(told)
    values = {"name": name, "funnel": funnel.to_json(), "bounds": dict(bounds), "not_looked_at": list(unlooked), **told}
    write_whole(directory / REPORT, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    page = preparation_page(name, funnel, told, bounds, unlooked)
    write_whole(directory / PAGE, page)
    return funnel
