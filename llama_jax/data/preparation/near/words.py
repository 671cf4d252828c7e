"""Texts as numbers: each letter as what is compared of it, and each word as a hash. Vectorised, for many texts at once.

What makes no difference: upper and lower case, accents, compatibility forms (as of full width), punctuation, symbols
and white space. In the scripts that put no spaces between words, a character is a word."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llama_jax.core.arrays import Bool, Int, Integer

_SEPARATOR, _REMOVED = 0, 1
_CODES = 0x40000
"""Unicode numbers that are told apart; those from here on (tags, variation selectors, private use) separate words."""
_LONG_WORD = 2**8
_ALONE = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai and Lao, Burmese, Khmer
    *((0x3040, 0x30FF), (0x31F0, 0x31FF)),  # Kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),  # Han
)


def mixed(numbers: Integer[np.ndarray, "numbers"]) -> Integer[np.ndarray, "numbers"]:
    """64 bits that look random for each number: the output of SplitMix64 (Steele, Lea, Flood 2014) at that place."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_numbers(name: str, count: int) -> Integer[np.ndarray, "count"]:
    """The fixed random 64-bit numbers of a hash function: SplitMix64 from a seed made of its name (8 letters)."""
    seed = np.frombuffer(name.encode().rjust(8)[-8:], "<u8")
    return mixed(mixed(seed) + np.arange(count, dtype=np.uint64))


def looked_up(table: Integer[np.ndarray, "codes"], text: str) -> Integer[np.ndarray, "characters"]:
    """For each character of a text what a table has at its Unicode number, or last in it."""
    return np.take(table, np.frombuffer(text.encode("utf-32-le"), "<u4"), mode="clip")


class Alphabet(NamedTuple):
    """What is compared of each character, by its Unicode number; last of all those that are not told apart."""

    letters: Integer[np.ndarray, "codes"]
    """The number of the character without its case, accents and compatibility form (such as full width); itself where
    that would be several characters, as of a ligature."""
    categories: np.ndarray
    """The first letter of the general category as a byte: Letter, Mark, Number, Punctuation, Symbol, Z (separator) and
    C (other). Formatting characters, such as soft hyphens, show nothing by themselves and count as marks."""


@functools.cache
def alphabet() -> Alphabet:
    """That of this Python's version of Unicode. Takes a tenth of a second, once a process."""
    letters = np.arange(_CODES + 1, dtype=np.uint32)
    categories = np.full(_CODES + 1, b"C", "S1")
    for code in range(_CODES):
        character = chr(code)
        category = unicodedata.category(character)
        categories[code] = "M" if category == "Cf" else category[0]
        # Most letters, those of Han and Hangul, have neither case nor compatibility form.
        if category[0] in "LN" and (category != "Lo" or unicodedata.decomposition(character)):
            plain = unicodedata.normalize("NFKD", character).lower()
            bare = [each for each in plain if unicodedata.category(each)[0] != "M"] if len(plain) > 1 else plain
            if len(bare) == 1:
                letters[code] = ord(bare[0])
    return Alphabet(letters, categories)


@functools.cache
def _word_letters() -> Integer[np.ndarray, "codes"]:
    """For each Unicode number that of the letter it is compared as, or that it is removed or separates words."""
    letters, categories = alphabet()
    table = np.where(np.isin(categories, (b"L", b"N")), letters, np.uint32(_SEPARATOR))
    table[categories == b"M"] = _REMOVED
    return table


@functools.cache
def _alone() -> Bool[np.ndarray, "codes"]:
    """Whether a letter is a word."""
    table = np.zeros(_CODES + 1, bool)
    for first, last in _ALONE:
        table[first : last + 1] = True
    return table


class Words(NamedTuple):
    """The words of some texts, one text after the other."""

    hashes: Integer[np.ndarray, "words"]
    """32 bits of each, in 64."""
    counts: Int[np.ndarray, "texts"]


def words_of(texts: Sequence[str]) -> Words:
    """The words of texts, as hashes.

    The hash is the upper half of the sum over a word's letters of letter times a random number for their place, modulo
    2^64: two words share one with a probability of 2^-32 (multilinear hashing, Lemire and Kaser 2014, arXiv:1202.4961).
    From the 256th letter on their order does not matter.
    """
    letters = looked_up(_word_letters(), "\n".join(texts))
    ends = np.cumsum([len(text) + 1 for text in texts])
    if (letters == _REMOVED).any():
        kept = np.flatnonzero(letters != _REMOVED)
        letters, ends = letters[kept], np.searchsorted(kept, ends)
    within = letters != _SEPARATOR
    begins = within.copy()
    begins[1:] &= ~within[:-1]
    if letters.size and letters.max() >= _ALONE[0][0]:
        alone = _alone()[letters]
        begins |= alone
        begins[1:] |= within[1:] & alone[:-1]
    starts = np.flatnonzero(begins)
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)
    if not len(starts):
        return Words(np.zeros(0, np.uint64), counts)
    # A word is summed with the separators behind it, which are zeros.
    places = np.arange(starts[0], len(letters)) - np.repeat(starts, np.diff(starts, append=len(letters)))
    factors = random_numbers("letters", _LONG_WORD)
    products = np.take(factors, places, mode="clip") * letters[starts[0] :]
    return Words(np.add.reduceat(products, starts - starts[0]) >> np.uint64(32), counts)
