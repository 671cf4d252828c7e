"""What a report is about: the corpus, what rules and searches were asked to look at, and what nobody looked at."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job
from llama_jax.data.preparation.rules.config import ContaminationConfig
from llama_jax.data.preparation.rules.contamination import contamination_report
from llama_jax.data.sources.prepared import FOUND

_UNLOOKED = {
    "deduplicate": "Documents that are the same as others (--deduplicate).",
    "near_duplicates": "Documents that are almost the same as others (--near_duplicates.threshold).",
    "paragraphs": "Paragraphs that repeat others (--paragraphs).",
    "languages": "The languages of documents (--languages.keep).",
    "quality": "Whether a text reads as prose (--quality.rules).",
    "perplexity": "How well a model predicts a text (--perplexity.model).",
    "contamination": "Whether parts of evaluations are in the text (--contamination.files).",
}
"""By the section of the settings that would ask for it."""
_NEVER = "Whether a text is true, harmful, personal, or free to use: no rule asks."


class Asked(NamedTuple):
    """What a preparation was asked to do, as its report needs it."""

    corpus: str
    """Its name."""
    bounds: Mapping[str, Sequence[float]]
    """Of each measure, the values beyond which rules drop a document."""
    evaluations: Mapping[str, Mapping[str, int]]
    """What was found of each evaluation that was looked for; see `contamination_report`."""
    unlooked: Sequence[str]
    """What nobody looked at, in sentences."""


def asked_of(config: PrepareConfig, job: Job, settings: Mapping[str, Any]) -> Asked:
    """What the settings ask for.

    Args:
        settings: As the manifest keeps them: a section out of use is not there.
    """
    bounds = {name: values for rule in job.rules for name, values in rule.bounds.items()}
    unlooked = [sentence for name, sentence in _UNLOOKED.items() if not settings.get(name)]
    return Asked(config.data.source, bounds, overlaps_of(job.directory, config.contamination), [*unlooked, _NEVER])


def overlaps_of(directory: epath.Path, wanted: ContaminationConfig) -> dict[str, dict[str, int]]:
    """What the findings in a directory say of the evaluations that were looked for; see `contamination_report`."""
    if not wanted.files:
        return {}
    path = directory / FOUND
    found = map(json.loads, path.open("rb")) if path.exists() else ()
    return contamination_report(found, wanted.files, wanted.fields, wanted.ngram)


def overlap_lines(evaluations: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """The same for a terminal."""
    for name, counts in evaluations.items():
        touched = f"{counts['touched']:,} of {counts['records']:,} records"
        line = f"{name}: {touched} share words with {counts['documents']:,} documents"
        if counts["too_short"]:
            line += f"; {counts['too_short']:,} are too short to be found"
        yield f"{line}; see {FOUND}" if counts["touched"] else line
