"""Which quality rules a name stands for, and the judges made of them."""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.data.preparation.rules import c4, gopher
from llama_jax.data.preparation.rules.bounds import Bound, judged_by
from llama_jax.data.preparation.rules.page import Page
from llama_jax.data.preparation.rules.rule import Judgement, Rule

SETS: Mapping[str, tuple[str, ...]] = {
    "gopher": tuple(bound.name for bound in gopher.QUALITY),
    "gopher_repetition": tuple(bound.name for bound in gopher.REPETITION),
    "c4": (
        c4.CITATIONS,
        *(rule.name for rule in c4.LINES),
        c4.BAD_WORDS,
        *(bound.name for bound in c4.PAGES),
    ),
}
"""The rules of each paper."""
NO_LINE_LEFT = "c4_no_line"
"""The reason of a page of which the rules take every line out."""


def rule_names(chosen: Collection[str]) -> list[str]:
    """Single rules for the names of sets and rules, each once, in the order in which they are asked."""
    return [name for title, names in SETS.items() for name in names if title in chosen or name in chosen]


def listed_words(path: str) -> list[str]:
    """The lines of a list of bad words.

    Raises:
        UserError: it is not UTF-8, or there is nothing in it.
    """
    try:
        lines = epath.Path(path).expanduser().read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--quality.bad_words {path}: not UTF-8 at byte {error.start}") from None
    if not any(map(str.strip, lines)):
        raise UserError(f"--quality.bad_words {path}: holds no word")
    return lines


class GopherRules(Rule):
    """Those of Gopher's rules that are named; the first that is not kept is the reason."""

    name = "gopher"

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    @property
    def bounds(self) -> Mapping[str, Sequence[float]]:
        return {bound.name: bound.values for bound in self._bounds()}

    def judged(self, text: str) -> Judgement:
        return judged_by(self._bounds(), Page(text))

    def _bounds(self) -> list[Bound]:
        return [bound for bound in (*gopher.QUALITY, *gopher.REPETITION) if bound.name in self._names]


class C4Rules(Rule):
    """Those of C4's rules that are named: first lines are taken out, then what is left is judged.

    Args:
        bad_words: a text file of words, one a line; asked for by the rule of that name.
    """

    name = "c4"

    def __init__(self, names: Collection[str], bad_words: str | None = None) -> None:
        self._names = frozenset(names)
        self._bad_words = bad_words if c4.BAD_WORDS in self._names else None

    @property
    def bounds(self) -> Mapping[str, Sequence[float]]:
        return {bound.name: bound.values for bound in self._bounds()}

    def edited(self, text: str) -> tuple[str, Mapping[str, int]]:
        rules = [rule for rule in c4.LINES if rule.name in self._names]
        counts: Counter[str] = Counter()
        kept: list[str] = []
        if c4.CITATIONS in self._names:
            text, citations = c4.without_citations(text)
            counts[c4.CITATIONS] += citations
        for line in text.split("\n"):
            stripped = line.strip()
            if not stripped and c4.TERMINAL_PUNCTUATION in self._names:
                continue  # it has none; not worth counting
            if not stripped:
                kept.append(line)
            elif name := next((rule.name for rule in rules if rule.takes_out(stripped)), None):
                counts[name] += 1
            else:
                kept.append(line)
        return "\n".join(kept), +counts

    def judged(self, text: str) -> Judgement:
        page = Page(text)
        if not page.words:
            return Judgement(dropped={"reason": NO_LINE_LEFT})
        if self._bad_words is not None and (found := _bad_words(self._bad_words).first_in(text)):
            return Judgement(dropped={"reason": c4.BAD_WORDS, "value": found})
        return judged_by(self._bounds(), page)

    def _bounds(self) -> list[Bound]:
        return [bound for bound in c4.PAGES if bound.name in self._names]


@functools.cache
def _bad_words(path: str) -> c4.BadWords:
    """Read once in a process."""
    return c4.BadWords(listed_words(path))
