"""The rules of C4, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (Raffel et al.
2020, arXiv:1910.10683), section 2.2: lines that are taken out, and pages that are dropped for what is left.

The constants are those of the code that made C4 (`c4_utils` of tensorflow-datasets) and of the paper's last version: 5
words a line, 3 sentences a page. Its first versions, and datatrove after them, have 3 and 5. English prose again."""

import re
from collections.abc import Callable
from typing import NamedTuple

from llama_jax.data.preparation.rules.bounds import Bound
from llama_jax.data.preparation.rules.page import Page

_MARKS = (".", "?", "!", '"')
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[^a-z\s])")


class LineRule(NamedTuple):
    """A rule on lines one by one."""

    name: str
    """Of the rule, by which the lines are counted that it takes out."""
    takes_out: Callable[[str], bool]
    """Called with a line without white space at both ends."""


TERMINAL_PUNCTUATION = "c4_terminal_punctuation"
LINES = (
    LineRule("c4_long_words", lambda line: len(line) > 1000 and max(map(len, line.split())) > 1000),
    LineRule(TERMINAL_PUNCTUATION, lambda line: not line.endswith(_MARKS) or line.endswith("...")),
    LineRule("c4_short_lines", lambda line: len(line.split(maxsplit=5)) < 5),
    LineRule("c4_javascript", lambda line: "javascript" in line.lower()),
    LineRule("c4_policies", lambda line: any(map(line.lower().__contains__, _POLICIES))),
)
"""In the order of the code, which alone has the first; the paper has the others."""

CITATIONS = "c4_citations"
"""The rule that takes Wikipedia's marks out of lines."""


def without_citations(text: str) -> tuple[str, int]:
    """The text without `[1]`, `[edit]` and `[citation needed]`, and how many those were."""
    return _CITATION.subn("", text)


def sentences(page: Page) -> int:
    """Sentences, each within a line: one for a line, and one more for each mark within it that ends one, by the letter
    after it. (The code that made C4 asks NLTK's Punkt, which knows abbreviations.)"""
    return sum(1 + len(_SENTENCE_END.findall(line)) for line in page.lines)


PAGES = (
    Bound("c4_lorem_ipsum", lambda page: "lorem ipsum" in page.text.lower(), most=0),
    Bound("c4_curly_bracket", lambda page: page.text.count("{"), most=0),
    Bound("c4_sentences", sentences, least=3),
)
"""On what is left of the lines, as in the code; the paper says only "any page"."""

BAD_WORDS = "c4_bad_words"
"""The rule that drops pages with a word of a list that the user gives."""
_WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


class BadWords:
    """Words and phrases, in any case, that a text may not hold; as whole words, but for scripts without spaces.

    Args:
        listed: one word or phrase each; empty ones are none.
    """

    def __init__(self, listed: list[str]) -> None:
        phrases = {" ".join(_words(line)) for line in listed} - {""}
        self._within = sorted(phrase for phrase in phrases if _WITHOUT_SPACES.search(phrase))
        self._words = {phrase for phrase in phrases if " " not in phrase} - set(self._within)
        self._phrases = sorted(phrases - self._words - set(self._within))

    def first_in(self, text: str) -> str | None:
        """One that the text holds, the same one each time; None: it holds none."""
        words = _words(text)
        if found := self._words.intersection(words):
            return min(found)
        joined = " ".join(words)
        padded = f" {joined} "
        within = (phrase for phrase in self._within if phrase in joined)
        return next((phrase for phrase in self._phrases if f" {phrase} " in padded), next(within, None))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
