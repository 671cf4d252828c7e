"""MinHash signatures against exact similarities of sets, and what counts as the same text."""

import random

import numpy as np
import pytest
from planted import changed, jaccard, random_text

from llama_jax.data.preparation.near.minhash import MinHash
from llama_jax.data.preparation.near.words import words_of

MINHASH = MinHash()


@pytest.fixture(scope="module")
def pairs():
    """Texts in twos, and how similar those of a pair are; from hardly to almost equal."""
    rng = random.Random(1)
    texts = []
    for number in range(400):
        text = random_text(rng, 60)
        texts += [text, changed(text, (number % 8) / 100 + 0.01, rng)]
    similarities = np.array([jaccard(*two) for two in zip(texts[::2], texts[1::2], strict=True)])
    return MINHASH.signatures(texts), similarities


def test_agreement_of_signatures_estimates_jaccard_without_bias(pairs):
    signatures, similarities = pairs
    errors = (signatures[::2] == signatures[1::2]).mean(axis=1) - similarities
    expected = np.sqrt(similarities * (1 - similarities) / MINHASH.permutations)
    assert abs(errors.sum()) < 3 * np.sqrt((expected**2).sum())
    assert 0.9 < np.sqrt((errors**2).mean() / (expected**2).mean()) < 1.1


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (7, 16)])
def test_pairs_share_a_band_as_often_as_the_formula_says(pairs, bands, rows):
    similarities = pairs[1]
    minhash = MinHash(5, bands, rows)
    keys = minhash.band_keys(pairs[0])
    share = (keys[::2] == keys[1::2]).any(axis=1)
    expected = 1 - (1 - similarities**rows) ** bands
    assert abs(share.sum() - expected.sum()) < 3 * np.sqrt((expected * (1 - expected)).sum())
    assert not (keys[:-2:2] == keys[2::2]).any()  # of texts that have nothing in common


def test_a_band_is_shared_by_those_that_agree_in_all_of_its_rows():
    signatures = np.random.default_rng(0).integers(0, 2**32, (2, MINHASH.permutations), np.uint32)
    signatures[1, 8:16] = signatures[0, 8:16]
    signatures[1, 16:23] = signatures[0, 16:23]
    first, second = MINHASH.band_keys(signatures)
    assert np.flatnonzero(first == second).tolist() == [1]
    assert len(np.unique(MINHASH.band_keys(np.full((1, MINHASH.permutations), 7, np.uint32)))) == MINHASH.bands


def test_signatures_do_not_depend_on_what_else_is_signed():
    rng = random.Random(2)
    texts = [random_text(rng, words) for words in (0, 1, 4, 5, 6, 0, 300, 3, 20_000, 0)]
    alone = np.concatenate([MINHASH.signatures([text]) for text in texts])
    np.testing.assert_array_equal(MINHASH.signatures(texts), alone)
    np.testing.assert_array_equal((alone == MINHASH.nothing).all(axis=1), [text == "" for text in texts])


def test_signatures_stay_what_they_are():
    assert MINHASH.signatures(["The quick brown fox jumps over the lazy dog."])[0, :3].tolist() == [
        483638463,
        154686833,
        1084506819,
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("One, two; THREE!", "one two three"),
        ("Crème brûlée à la carte", "creme brulee a la carte"),
        ("cafe\u0301", "caf\u00e9"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("co\u00adoperate", "cooperate"),
        ("a\n\n b\tc", "a b c"),
        ("日本、語。", "日本語"),
        ("हिन्दी भाषा", "हिन्दी, भाषा"),
    ],
)
def test_texts_that_differ_in_form_alone_are_the_same(one, other):
    np.testing.assert_array_equal(*MINHASH.signatures([one, other]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" -- ", 0),
        ("don't stop", 3),
        ("v1.2 costs 30€", 4),
        ("日本語 text です", 6),
        ("text日本text", 4),
        ("ภาษาไทย", 7),
        ("한국어 문장", 2),
        ("हिन्दी भाषा", 2),
    ],
)
def test_words_are_counted_in_every_script(text, words):
    assert words_of(["before", text, "after"]).counts.tolist() == [1, words, 1]


def test_words_are_as_long_as_they_like():
    words = ["a" * 1000, "a" * 1001, "a" * 999 + "b", "b" + "a" * 999]
    assert len(set(words_of(words).hashes.tolist())) == 4


def test_a_text_that_is_short_of_a_shingle_is_one():
    signatures = MINHASH.signatures(["a b", "a b", "a b c", "b a", "a b a b a"])
    equal = (signatures[:, None] == signatures[None]).mean(axis=2)
    assert equal[0, 1] == 1 and equal[0, 2:].max() < 0.1
