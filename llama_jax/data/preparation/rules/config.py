"""Settings of the rules that judge documents one by one."""

import math
from dataclasses import dataclass
from typing import Literal

from etils import epath

from llama_jax.core.errors import UserError, nearest
from llama_jax.data.preparation.rules import c4
from llama_jax.data.preparation.rules.languages import ALL, UNKNOWN, known_languages
from llama_jax.data.preparation.rules.quality import SETS, rule_names


@dataclass(frozen=True)
class LanguagesConfig:
    """Which languages are kept; with the extra `languages`."""

    keep: tuple[str, ...] = ()
    """Languages of documents to keep, by ISO 639 codes such as `en`, and `unknown` for those that cannot be told; `all`
    keeps and counts them all. Empty: nobody looks."""
    threshold: float = 0.5
    """Documents whose likeliest language has a lower probability are of the language `unknown`; 0.5 is the bound of
    CCNet (arXiv:1911.00359, section 3.3)."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--languages.threshold {self.threshold}: is a probability, from 0 to 1")
        if not self.keep:
            return
        if ALL in self.keep and len(self.keep) > 1:
            raise UserError(f"--languages.keep {list(self.keep)}: `{ALL}` stands alone")
        known = (*known_languages(), ALL, UNKNOWN)
        for code in self.keep:
            if code not in known:
                raise UserError(
                    f"--languages.keep {code}: no language that can be told; there are {' '.join(sorted(known))}"
                )


@dataclass(frozen=True)
class QualityConfig:
    """Heuristic rules of quality, from papers."""

    rules: tuple[str, ...] = ()
    """The rules to apply: `gopher`, `gopher_repetition`, `c4`, or single ones such as `gopher_word_count`; each is
    counted by its name. They are for English, and for languages that write spaces at best."""
    bad_words: str | None = None
    """Text file of words and phrases, one a line, for the rule `c4_bad_words`: a page with one is dropped. None: the
    set `c4` goes without it."""

    def __post_init__(self) -> None:
        known = (*SETS, *(name for names in SETS.values() for name in names))
        for name in self.rules:
            if name not in known:
                sets = ", ".join(SETS)
                raise UserError(
                    f"--quality.rules {name}: no such rule{nearest(name, known)}; there are the sets {sets}, and "
                    "single rules, see llama_jax/data/README.md"
                )
        if self.bad_words is None and c4.BAD_WORDS in self.rules:
            raise UserError(f"--quality.rules {c4.BAD_WORDS}: needs --quality.bad_words FILE, with a word a line")
        if self.bad_words is None:
            return
        if c4.BAD_WORDS not in rule_names(self.rules):
            raise UserError(f"--quality.bad_words {self.bad_words}: only the rule {c4.BAD_WORDS} asks for it; add it")
        if not epath.Path(self.bad_words).expanduser().is_file():
            raise UserError(f"--quality.bad_words {self.bad_words}: no such file")


@dataclass(frozen=True)
class PerplexityConfig:
    """How well a model of ours predicts a document, as a measure of its quality (CCNet, arXiv:1911.00359)."""

    model: str | None = None
    """Model that measures: a run directory, or what else `--model` takes elsewhere. None: nothing is measured."""
    most: float | None = None
    """Documents with a higher perplexity by token are left out."""
    least: float | None = None
    """Documents with a lower one are left out."""
    tokens: int = 2048
    """Tokens of a document that are looked at, from its start."""

    def __post_init__(self) -> None:
        for name in ("most", "least"):
            bound = getattr(self, name)
            if bound is not None and not 1 <= bound < math.inf:
                raise UserError(f"--perplexity.{name} {bound}: must be a number of at least 1")
        if self.most is not None and self.least is not None and self.most < self.least:
            raise UserError(f"--perplexity.most {self.most}: is below --perplexity.least {self.least}; nothing is left")
        if self.tokens < 2:
            raise UserError(f"--perplexity.tokens {self.tokens}: must be at least 2")


@dataclass(frozen=True)
class ContaminationConfig:
    """Documents that hold a part of an evaluation."""

    files: tuple[str, ...] = ()
    """Files of evaluations: what `data.source` takes, with records as `evaluate` reads them. Empty: nobody looks."""
    fields: tuple[str, ...] = ()
    """Fields of records whose texts are looked for; empty: all."""
    ngram: int = 13
    """Words in a row that a document and an evaluation may not share, letter case and punctuation aside (GPT-3,
    arXiv:2005.14165 appendix C). A text of fewer is looked for as a whole if it has 8 at least."""
    action: Literal["report", "drop"] = "report"
    """`report` only writes down what is found, `drop` leaves the documents out."""

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise UserError(f"--contamination.ngram {self.ngram}: must be at least 1 word")
