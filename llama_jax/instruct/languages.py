"""What the filters take for a word, for a long instruction and for a bad start, in English or in any language."""

import functools
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llama_jax.core.text import rouge_words

LanguageName: TypeAlias = Literal["english", "any"]

# Self-Instruct's, of what a model that reads and writes text alone cannot work on.
_SELF_INSTRUCT_WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
)
ALPACA_WORDS = ("video", "audio", "music", "flowchart", "diagram")
"""What Stanford Alpaca drops besides."""
_CHINESE_WORDS = (
    *(
        "图片",
        "图像",
        "图画",
        "图表",
        "照片",
        "插图",
        "截图",
        "文件",
        "地图",
        "绘制",
        "绘图",
        "画出",
        "画一",
        "视频",
        "音频",
        "音乐",
    ),
    *("流程图", "示意图"),
)
_PROGRAM = ("Write a program",)
_CHINESE_PROGRAM = ("写一个程序", "编写一个程序", "编写程序", "写个程序")


@dataclass(frozen=True)
class Language:
    """How texts are taken apart and judged."""

    words: Callable[[str], list[str]]
    """What ROUGE-L compares."""
    length: Callable[[str], int]
    """Words of an instruction, for the bounds on its length."""
    bad_start: Callable[[str], str | None]
    """The reason to drop a text for its first character, or None."""
    written: Callable[[str], str]
    """An instruction as the original pipeline writes it."""
    blacklist: tuple[str, ...]
    """Words that drop an instruction: Self-Instruct's."""
    programs: tuple[str, ...]
    """Starts that drop an instruction."""


def language(name: LanguageName) -> Language:
    """The language of that name: `english` is to the letter of the two papers' code."""
    if name == "english":
        return Language(
            rouge_words,
            lambda text: len(text.split()),
            _bad_english_start,
            str.capitalize,
            _SELF_INSTRUCT_WORDS,
            _PROGRAM,
        )
    return Language(
        unicode_words,
        lambda text: len(unicode_words(text)),
        lambda text: None,
        lambda text: text,
        (*_SELF_INSTRUCT_WORDS, *_CHINESE_WORDS),
        (*_PROGRAM, *_CHINESE_PROGRAM),
    )


def unicode_words(text: str) -> list[str]:
    """Runs of letters, marks and digits, without regard to case and width; in scripts that put no spaces between words
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a word, with the marks above and below it."""
    found: list[str] = []
    joins = False
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = _kind(character)
        if (joins and kind in ("letter", "mark")) or (
            kind == "mark" and found and not joins and _kind(found[-1][0]) == "alone"
        ):
            found[-1] += character
        elif kind != "other":
            found.append(character)
        joins = kind == "letter" or (kind == "mark" and joins)
    return found


def blacklist_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Finds any of the words, in any case: whole words, but anywhere in texts without spaces."""
    parts = [
        # Not \b, since a Chinese character beside an English word is no part of it.
        re.escape(word) if _kind(word[0]) == "alone" else rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])"
        for word in sorted(words, key=len, reverse=True)
    ]
    return re.compile("|".join(parts) or "(?!)", re.IGNORECASE)


def _bad_english_start(text: str) -> str | None:
    if text[0] in string.punctuation:
        return "starts_with_punctuation"
    return None if text[0].isascii() else "starts_with_non_ascii"


_WITHOUT_SPACES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F), (0x31A0, 0x31BF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF)),
)
"""Thai and Lao, Burmese, Khmer, kana and Bopomofo, and Chinese characters."""


@functools.lru_cache(1 << 16)
def _kind(character: str) -> Literal["letter", "alone", "mark", "other"]:
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category[0] not in "LN":
        return "other"
    point = ord(character)
    return "alone" if any(first <= point <= last for first, last in _WITHOUT_SPACES) else "letter"
