"""Near-duplicates of a corpus: how many of the planted ones are found, which stays, and on what that depends."""

import random

import numpy as np
import pytest
from planted import changed, jaccard, random_text
from searching import dropped, searched

from llama_jax.data.preparation.duplicates import ExactDuplicates
from llama_jax.data.preparation.near import duplicates, pairs
from llama_jax.data.preparation.near.duplicates import NearDuplicates
from llama_jax.data.preparation.near.minhash import MinHash
from llama_jax.data.sources.opening import open_source

SEARCH = NearDuplicates(MinHash(), 0.75)


@pytest.fixture
def groups(tmp_path, byte_tokenizer):
    """From texts to what is dropped of them."""

    def found(texts, shards=1, *, folder="a"):
        return dropped(searched(tmp_path / folder, byte_tokenizer, texts, shards, SEARCH), SEARCH)

    return found


def test_planted_near_duplicates_are_found(groups):
    rng = random.Random(5)
    texts, similarities = [], []
    for number in range(300):
        text = random_text(rng, 80)
        other = changed(text, (0.0, 0.02, 0.05, 0.2)[number % 4], rng)
        texts += [text, other]
        similarities.append(jaccard(text, other))
    found = groups(texts, 3)
    assert all(each["of"] == document ^ 1 for document, each in found.items())
    joined = np.array([{number, number + 1} & found.keys() != set() for number in range(0, len(texts), 2)])
    similarities = np.array(similarities)
    assert joined[similarities >= 0.85].mean() >= 0.95
    assert not joined[similarities < 0.6].any()


def test_groups_and_what_stays_do_not_depend_on_order_or_shards(groups, monkeypatch):
    rng = random.Random(6)
    texts = []
    for _ in range(40):
        texts.append(random_text(rng, 60))
        for _ in range(rng.randrange(6)):
            texts.append(
                changed(rng.choice(texts[-3:]), rng.choice((0.0, 0.02, 0.05)), rng) + rng.choice(("", ".", "!"))
            )
    texts.append(texts[0])
    first = groups(texts)
    monkeypatch.setattr(duplicates, "_FEW_BANDS", 500)
    order = rng.sample(range(len(texts)), len(texts))
    again = groups([texts[place] for place in order], 4, folder="b")
    expected = sorted((texts[document], texts[each["of"]], each["similarity"]) for document, each in first.items())
    assert len(expected) > 60
    found = ((order[document], order[each["of"]], each["similarity"]) for document, each in again.items())
    assert sorted((texts[a], texts[b], similarity) for a, b, similarity in found) == expected


def test_of_a_group_the_longest_stays_and_of_equal_ones_the_first(groups):
    text = random_text(random.Random(7), 50)
    found = groups([text, f"{text} more.", text.upper(), "another text", f"{text} more.", "--", "..."], 2)
    assert {document: each["of"] for document, each in found.items()} == {0: 1, 2: 1, 4: 1}
    assert found[0]["similarity"] >= 0.75
    assert found[4] == {"reason": "near_duplicate", "of": 1, "similarity": 1.0}


def test_what_is_dropped_before_neither_stays_nor_is_dropped_again(tmp_path, byte_tokenizer):
    text = random_text(random.Random(8), 50)
    # The third is the longest, and dropped as the same as the first.
    texts = [text, f"{text} more", f"{text}{' ' * 50}"]
    job = searched(tmp_path, byte_tokenizer, texts, 1, ExactDuplicates(), SEARCH)
    assert {document: each["of"] for document, each in dropped(job, SEARCH).items()} == {0: 1}


def test_a_large_bucket_is_said(tmp_path, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(pairs, "NEIGHBOURS", 8)
    rng = random.Random(9)
    start = random_text(rng, 200)
    job = searched(tmp_path, byte_tokenizer, [f"{start} {random_text(rng, 5)}" for _ in range(80)], 1, SEARCH)
    assert len(dropped(job, SEARCH)) == 79
    assert SEARCH.compared(job).large_buckets > 0
    assert f"{SEARCH.compared(job).left_out:,} in " in SEARCH.summary(job)


@pytest.mark.slow
def test_planted_near_duplicates_in_documentation(groups, capsys):
    """Prints the table in llama_jax/data/README.md."""
    rng, source = random.Random(10), open_source("pydoc", "text")
    texts = [text for text in map(str, source) if 100 <= len(text.split()) <= 3000]
    planted, dropped_pairs = [], []
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4):
        all_texts = [each for text in texts for each in (text, changed(text, share, rng))]
        found = groups(all_texts, 4, folder=str(share))
        pairs = np.arange(len(all_texts)).reshape(-1, 2)
        kept = np.array([found[number]["of"] if number in found else number for number in pairs.flat]).reshape(-1, 2)
        rows = np.array(
            [
                [jaccard(*(all_texts[number] for number in pair)), a == b]
                for pair, (a, b) in zip(pairs, kept, strict=True)
            ]
        )
        planted.append(rows)
        dropped_pairs += [jaccard(all_texts[number], all_texts[each["of"]]) for number, each in found.items()]
        with capsys.disabled():
            similarity, found_share = rows.mean(axis=0)
            print(f"{share:.0%} changed: {len(rows)} pairs, similarity {similarity:.3f}, found {found_share:.1%}")
    every, dropped_pairs = np.concatenate(planted), np.array(dropped_pairs)
    for least in (0.75, 0.8, 0.85, 0.9):
        some = every[every[:, 0] >= least]
        with capsys.disabled():
            print(f"recall at {least}: {some[:, 1].mean():.1%} of {len(some)}")
            print(
                f"precision at {least - 0.1:.2f}: {(dropped_pairs >= least - 0.1).mean():.1%} of {len(dropped_pairs)}"
            )
    assert every[every[:, 0] >= 0.85, 1].mean() >= 0.95
    assert (dropped_pairs >= 0.7).mean() >= 0.95
