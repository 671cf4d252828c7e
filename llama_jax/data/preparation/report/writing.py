"""Writes the report of a preparation beside its shards."""

import json

from etils import epath

from llama_jax.core.files import write_whole
from llama_jax.data.preparation.report.asked import Asked
from llama_jax.data.preparation.report.funnel import Funnel, funnel_of
from llama_jax.data.preparation.report.page import preparation_page
from llama_jax.data.preparation.report.tally import Tally
from llama_jax.data.sources.prepared import PAGE, REPORT


def write_report(directory: epath.Path, asked: Asked, tally: Tally) -> Funnel:
    """Write `report.json` and `report.html`, whose bytes depend on what was asked and on the tally alone."""
    told = tally.to_json()
    funnel = funnel_of(told, list(asked.bounds))
    values = {"corpus": asked.corpus, "funnel": funnel.to_json(), **told, "bounds": dict(asked.bounds)}
    values["overlaps"] = dict(asked.evaluations)
    values["not_looked_at"] = list(asked.unlooked)
    page = preparation_page(asked, funnel, told)
    for name, content in ((REPORT, json.dumps(values, indent=1, ensure_ascii=False) + "\n"), (PAGE, page)):
        write_whole(directory / name, content.encode(errors="replace"))  # names of files need not be valid Unicode
    return funnel
