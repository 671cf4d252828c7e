"""What a rule says of a document. Does not know which rules there are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Judgement(NamedTuple):
    """What a rule says of one document."""

    dropped: Mapping[str, Any] | None = None
    """None for a document to keep, else `reason`, a name, and what was measured; a line of `dropped.jsonl` to be."""
    tags: Mapping[str, str] = {}
    """What documents are counted by, such as {"language": "de"}."""
    measures: Mapping[str, float] = {}
    """Numbers whose distribution is of interest, such as {"perplexity": 312.5}."""
    found: Sequence[Mapping[str, Any]] = ()
    """What is worth a line of its own, such as an overlap with an evaluation; the caller adds the document."""


KEPT = Judgement()
"""Of a document that a rule has nothing to say about."""


class Rule:
    """A judge of documents one by one: what it says of a text depends on the text and the settings alone.

    Instances travel to other processes by pickle, before their first use; what is large is loaded there, on that use.
    """

    name: str
    """By which its edits are counted."""

    @property
    def bounds(self) -> Mapping[str, Sequence[float]]:
        """Of each measure, the values beyond which documents are dropped."""
        return {}

    def edited(self, text: str) -> tuple[str, Mapping[str, int]]:
        """The text without the lines that the rule takes out, and how many those are by the name of the reason."""
        return text, {}

    def judged(self, text: str) -> Judgement:
        """What the rule says of an edited text."""
        return KEPT
