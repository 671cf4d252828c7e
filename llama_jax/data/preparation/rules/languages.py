"""The language of a document, by py3langid (extra `languages`): a naive Bayes model over byte n-grams, in its wheel."""

import functools
from collections.abc import Collection
from importlib import metadata
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.data.preparation.rules.rule import Judgement, Rule

ALL = "all"
UNKNOWN = "unknown"
_PARTS = 3
_PART_CHARACTERS = 400
"""A text that is longer than all parts together is judged by them: of a thousand characters each language is told, and
the library reads a megabyte a second."""


class Languages(Rule):
    """Keeps documents in certain languages and counts all by their own.

    Args:
        keep: codes of languages, or `all`.
        threshold: probability below which the language is `unknown`.
    """

    name = "languages"

    def __init__(self, keep: Collection[str], threshold: float) -> None:
        self._keep = frozenset(keep)
        self._threshold = threshold

    def judged(self, text: str) -> Judgement:
        likeliest, probability = language(sample(text))
        is_sure = probability >= self._threshold
        told = likeliest if is_sure else UNKNOWN
        tags = {"language": told}
        if ALL in self._keep or told in self._keep:
            return Judgement(tags=tags)
        reason = "language" if is_sure else "language_unsure"
        return Judgement({"reason": reason, "language": likeliest, "probability": round(probability, 4)}, tags)


def sample(text: str) -> str:
    """The text, or of a long one what stands at its start, in its middle and at its end."""
    if len(text) <= _PARTS * _PART_CHARACTERS:
        return text
    last = len(text) - _PART_CHARACTERS
    starts = (last * part // (_PARTS - 1) for part in range(_PARTS))
    return "\n".join(text[start : start + _PART_CHARACTERS] for start in starts)


def language(text: str) -> tuple[str, float]:
    """The likeliest language of a text, as ISO 639 code, and its probability; one without letters has none of note."""
    return _identifier().classify(text)


def known_languages() -> tuple[str, ...]:
    """Codes of all that can be told."""
    return tuple(_identifier().labels)


def library_version() -> str:
    """Of another version the answers may be others."""
    return metadata.version("py3langid")


@functools.cache
def _identifier() -> Any:
    """The model, loaded once in a process: a second, and 120 MB."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "--languages.keep: needs py3langid; install the extra: pip install 'llama_jax[languages]'"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
