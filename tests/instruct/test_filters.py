"""Each filter keeps one instruction and drops another, in English by the letter of the papers, and in any language."""

import pytest

from llama_jax.instruct.config import FilterConfig
from llama_jax.instruct.filters import InstructionFilter, kept_instances
from llama_jax.instruct.languages import language, unicode_words
from llama_jax.instruct.pool import Pool
from llama_jax.instruct.tasks import Instance, Task


def reason(text: str, name="english", form="alpaca", **settings) -> str | None:
    return InstructionFilter(FilterConfig(**settings), language(name), form).reason(text)


ENGLISH = [
    ("", "empty"),
    ("Name three rivers", "too_short"),
    ("Name three long rivers", None),
    ("word " * 150, None),
    ("word " * 151, "too_long"),
    ("Describe the image to me", "blacklist"),
    ("Describe the IMAGES to me", "blacklist"),
    ("Describe the imagery to me", None),
    ("Please go to the shop", "blacklist"),
    ("Please go towards the shop", None),
    ("Draw what you see here", "blacklist"),
    ("Withdraw what you said here", None),
    ("Write a program that adds numbers", "asks_for_a_program"),
    ("Write a programme for the concert", "asks_for_a_program"),  # as in the published code, which looks at the start
    ("Write the program of the concert", None),
    ('"Quote" the text for me', "starts_with_punctuation"),
    ("Quote the text for me!", None),
    ("Être ou ne pas être", "starts_with_non_ascii"),
    ("Be or do not être", None),
    ("请 列出 三种 水果", "starts_with_non_ascii"),
]
ANY = [
    ("列出水果", None),
    ("列水果", "too_short"),
    ("字" * 150, None),
    ("字" * 151, "too_long"),
    ("描述这张图片里的人", "blacklist"),
    ("描述这张椅子上的人", None),
    ("请用map函数处理这个列表", "blacklist"),
    ("请用maple函数处理这个列表", None),
    ("写一个程序计算总和", "asks_for_a_program"),
    ("写一个故事讲讲程序", None),
    ("《红楼梦》的作者是谁？", None),
    ("¿Qué hora es en Lima?", None),
    ("Translate 春天 into French", None),
    ("Draw 春天 as you see it", "blacklist"),
]


@pytest.mark.parametrize(("text", "expected"), ENGLISH)
def test_english_filters(text: str, expected: str | None) -> None:
    assert reason(text) == expected


@pytest.mark.parametrize(("text", "expected"), ANY)
def test_filters_of_any_language(text: str, expected: str | None) -> None:
    assert reason(text, "any") == expected


def test_alpaca_drops_more_words_than_self_instruct() -> None:
    assert reason("Describe the music you like") == "blacklist"
    assert reason("Describe the music you like", form="original") is None
    assert reason("Describe the music you like", blacklist=()) is None
    assert reason("Describe the taste you like", blacklist=("taste",)) == "blacklist"


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [
        ("english", "a b c d e f g h x y", "a b c d e f g x y z"),
        ("any", "写一首关于秋天的短诗", "讲一个关于秋天的故事"),
        ("any", "用 Python 写一首关于春天的诗", "用 Python 讲一讲关于春天的事"),
    ],
)
def test_what_is_too_similar_to_seed_or_pool_is_dropped(name, near: str, far: str) -> None:
    seed = "a b c d e f g h i j" if name == "english" else "写一首关于春天的诗"
    told = language(name)
    pool = Pool([Task(seed, ())], told, InstructionFilter(FilterConfig(), told, "alpaca"), 0.7)
    dropped, kept = pool.propose(near), pool.propose(far)
    assert (dropped.reason, dropped.in_pool, kept.reason, kept.in_pool) == ("similar", False, None, True)
    assert dropped.similar[0][0] == seed
    assert dropped.seed_similarity > 0.7 >= kept.seed_similarity
    assert pool.propose(far).reason == "similar"  # which is in the pool now
    assert pool.machine_written == [far]


@pytest.mark.parametrize(
    ("instances", "kept", "dropped"),
    [
        ([("a", "b")], 1, {}),
        ([("a", " ")], 0, {"empty_output": 1}),
        ([("a", "a"), ("a", "b")], 1, {"input_is_output": 1}),
        ([("a:", "b"), ("a", "b:"), ("c：", "d"), ("d", "e: f")], 1, {"ends_with_colon": 3}),
        ([("a", "b"), ("a", "b")], 1, {"duplicate": 1}),
        ([("a", "b"), ("a", "c"), ("d", "e")], 0, {"conflicting_outputs": 3}),
        ([("", "b"), ("", "c")], 2, {}),
        ([(f"{n}", "b") for n in range(7)], 5, {"more_than_five": 2}),
    ],
)
def test_instances(instances: list[tuple[str, str]], kept: int, dropped: dict[str, int]) -> None:
    found, reasons = kept_instances([Instance(*each) for each in instances])
    assert (len(found), reasons) == (kept, dropped)


def test_words_of_any_language() -> None:
    assert unicode_words("Café Ｐython3, हिन्दी! 한국어") == ["café", "python3", "हिन्दी", "한국어"]
    assert unicode_words("春天2024が ไทย") == ["春", "天", "2024", "が", "ไ", "ท", "ย"]
    assert unicode_words("ก่อน") == ["ก่", "อ", "น"]
    assert unicode_words("naïve") == unicode_words("nai\u0308ve")
