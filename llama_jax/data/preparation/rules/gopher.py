"""The rules of Gopher, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (Rae et al. 2021,
arXiv:2112.11446), appendix A.1.1, with the paper's constants. They are for English prose.

The paper leaves open what a word, a bullet and a duplicate is. Here, as in RedPajama-V2, white space parts words and an
occurrence after the first is the duplicate; see `page`."""

import string
from collections.abc import Iterable

from llama_jax.data.preparation.rules.bounds import Bound
from llama_jax.data.preparation.rules.page import Page, duplicate_fractions

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "◦", "▪", "■", "●", "-", "*")
ELLIPSES = ("...", "…")


def _mean_word_length(page: Page) -> float:
    return page.characters / max(1, len(page.words))


def _ratio(page: Page, symbols: Iterable[str]) -> float:
    return sum(map(page.text.count, symbols)) / max(1, len(page.words))


def _bullet_lines(page: Page) -> float:
    return sum(line.startswith(BULLETS) for line in page.lines) / max(1, len(page.lines))


def _ellipsis_lines(page: Page) -> float:
    return sum(line.endswith(ELLIPSES) for line in page.lines) / max(1, len(page.lines))


def _alphabetic_words(page: Page) -> float:
    letters = sum(word.isalpha() or any(map(str.isalpha, word)) for word in page.words)
    return letters / max(1, len(page.words))


def _stop_words(page: Page) -> int:
    """How many of them occur, whatever their case and what punctuation is beside them."""
    return len(STOP_WORDS.intersection(word.strip(string.punctuation).lower() for word in page.distinct))


QUALITY = (
    Bound("gopher_word_count", lambda page: len(page.words), least=50, most=100_000),
    Bound("gopher_mean_word_length", _mean_word_length, least=3, most=10),
    Bound("gopher_hash_ratio", lambda page: _ratio(page, "#"), most=0.1),
    Bound("gopher_ellipsis_ratio", lambda page: _ratio(page, ELLIPSES), most=0.1),
    Bound("gopher_bullet_lines", _bullet_lines, most=0.9),
    Bound("gopher_ellipsis_lines", _ellipsis_lines, most=0.3),
    Bound("gopher_alphabetic_words", _alphabetic_words, least=0.8),
    Bound("gopher_stop_words", _stop_words, least=2),
)
"""Appendix A.1.1, "Quality Filtering"."""


def _top_ngram(n: int, most: float) -> Bound:
    return Bound(f"gopher_top_{n}gram", lambda page: page.repeated_ngrams[n][0], most=most)


def _duplicate_ngrams(n: int, most: float) -> Bound:
    return Bound(f"gopher_duplicate_{n}grams", lambda page: page.repeated_ngrams[n][1], most=most)


REPETITION = (
    Bound("gopher_duplicate_lines", lambda page: duplicate_fractions(page.lines)[0], most=0.30),
    Bound("gopher_duplicate_paragraphs", lambda page: duplicate_fractions(page.paragraphs)[0], most=0.30),
    Bound("gopher_duplicate_line_characters", lambda page: duplicate_fractions(page.lines)[1], most=0.20),
    Bound("gopher_duplicate_paragraph_characters", lambda page: duplicate_fractions(page.paragraphs)[1], most=0.20),
    _top_ngram(2, 0.20),
    _top_ngram(3, 0.18),
    _top_ngram(4, 0.16),
    _duplicate_ngrams(5, 0.15),
    _duplicate_ngrams(6, 0.14),
    _duplicate_ngrams(7, 0.13),
    _duplicate_ngrams(8, 0.12),
    _duplicate_ngrams(9, 0.11),
    _duplicate_ngrams(10, 0.10),
)
"""Appendix A.1.1, "Repetition Removal", with the thresholds of table A1."""
