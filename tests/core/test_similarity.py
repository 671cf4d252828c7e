"""ROUGE-L with a pool: the numbers of the definition, and the most similar of all."""

import random
import re

import pytest

from llama_jax.core.similarity import SimilarityIndex
from llama_jax.core.text import rouge_l, rouge_words
from llama_jax.instruct.languages import unicode_words

WORDS = ["a", "the", "of", "to", "and", "in", "is", "it", "was", "for", "on", *(f"word{n}" for n in range(60))]


def texts(count: int, seed: int, longest: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count)]


def index_of(pool: list[str], words=rouge_words) -> SimilarityIndex:
    index = SimilarityIndex(words)
    for text in pool:
        index.add(text)
    return index


@pytest.mark.parametrize("longest", [6, 30, 150])
def test_the_most_similar_are_those_of_comparing_with_every_text(longest: int) -> None:
    pool = texts(100 if longest < 100 else 20, 0, longest)
    index = index_of(pool)
    for text in texts(8, 1, longest):
        scores = [rouge_l(other, text) for other in pool]
        best = sorted((number for number in range(len(pool)) if scores[number]), key=lambda n: (-scores[n], n))[:5]
        found = index.most_similar(text, 5)
        assert [each.number for each in found] == best
        assert [each.score for each in found] == pytest.approx([scores[number] for number in best], abs=1e-12)


def test_seven_words_of_ten_are_exactly_the_bound() -> None:
    index = index_of(["a b c d e f g h i j"])
    assert index.most_similar("a b c d e f g x y z")[0].score == 0.7
    assert index.most_similar("a b c d e f g h y z")[0].score > 0.7


def test_repeated_words_count_as_often_as_both_have_them() -> None:
    assert index_of(["no no no yes"]).most_similar("no no")[0].score == 2 * 2 / 6


@pytest.mark.parametrize("text", ["", "...", "unknown words alone"])
def test_nothing_in_common_is_similar_to_nothing(text: str) -> None:
    assert index_of(["a b", ""]).most_similar(text, 3) == []
    assert SimilarityIndex(rouge_words).most_similar("a b") == []


def test_chinese_is_compared_by_characters() -> None:
    pool = ["写一首关于春天的诗", "列出三种水果"]
    found = index_of(pool, unicode_words).most_similar("写一首关于秋天的诗")
    assert found[0] == (0, 2 * 8 / 18)
    assert index_of(pool).most_similar("写一首关于秋天的诗") == []  # which the papers' words cannot see


@pytest.mark.slow
def test_numbers_are_those_of_rouge_score() -> None:
    scoring = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scoring.RougeScorer(["rougeL"], use_stemmer=False)
    pool = [re.sub("word", "wörd-", text) for text in texts(300, 3)]
    index = index_of(pool)
    for text in texts(30, 4):
        best = max(scorer.score(other, text)["rougeL"].fmeasure for other in pool)
        assert sum(each.score for each in index.most_similar(text)) == pytest.approx(best, abs=1e-9)
