"""What a report is about: the corpus, what rules and searches were asked to look at, and what nobody looked at."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job

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
    evaluations: Sequence[str]
    """Files whose overlaps were looked for."""
    unlooked: Sequence[str]
    """What nobody looked at, in sentences."""


def asked_of(config: PrepareConfig, job: Job, settings: Mapping[str, Any]) -> Asked:
    """What the settings ask for.

    Args:
        settings: As the manifest keeps them: a section out of use is not there.
    """
    bounds = {name: values for rule in job.rules for name, values in rule.bounds.items()}
    unlooked = [sentence for name, sentence in _UNLOOKED.items() if not settings.get(name)]
    return Asked(config.data.source, bounds, config.contamination.files, [*unlooked, _NEVER])
