"""Paragraphs that repeat earlier ones: what is alike, which stays, and where it is looked for."""

import numpy as np
import pytest
from searching import searched

from llama_jax.data.preparation.duplicates import ExactDuplicates
from llama_jax.data.preparation.near.paragraphs import RepeatedParagraphs, paragraph_hashes

TEXTS = [
    "A first line.\nShare this page!\n\nIts end",
    "Another.\n\nshare THIS   page\nAnother",
    "A first line.\nShare this page!\n\nIts  end",
    "Third\nOn 12 May\nIt's end",
    "---\non 31 may\n---\nThird",
]


def edited(tmp_path, tokenizer, shards, *searches):
    """The texts after the last search, and the number of paragraphs that went from each."""
    job = searched(tmp_path, tokenizer, TEXTS, shards, *searches)
    results = []
    for shard in range(shards):
        edit = searches[-1].edits(job, shard)
        results += [edit(document, TEXTS[document]) for document in job.documents_of(shard)]
    return [text for text, _ in results], [lines.get("repeated_paragraphs", 0) for _, lines in results]


def test_the_first_of_paragraphs_that_are_alike_stays(tmp_path, byte_tokenizer):
    for shards in (1, 3):
        search = RepeatedParagraphs(across_shards=True)
        texts, lines = edited(tmp_path / str(shards), byte_tokenizer, shards, search)
        assert texts == [TEXTS[0], "Another.\n", "", "Third\nOn 12 May", "---\n---"]
        assert lines == [0, 2, 3, 1, 2]


def test_within_shards_each_has_a_first(tmp_path, byte_tokenizer):
    texts, _ = edited(tmp_path, byte_tokenizer, 5, RepeatedParagraphs(across_shards=False))
    assert texts == [TEXTS[0], "Another.\n\nshare THIS   page", *TEXTS[2:]]


def test_paragraphs_of_dropped_documents_make_no_other_a_repetition(tmp_path, byte_tokenizer):
    texts, _ = edited(tmp_path, byte_tokenizer, 2, ExactDuplicates(), RepeatedParagraphs(across_shards=True))
    # The third is dropped as the same as the first, so nothing is said of it.
    assert texts[2] == TEXTS[2]
    assert texts[3] == "Third\nOn 12 May"


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Page 1 of 17", "page 3 of 29", True),
        ("Page 1 of 17", "page 3 of 5", False),
        ("  Déjà-vu,  again ", "dejavu again", True),
        ("de\u0301ja", "déjà", True),
        ("C + C", "C C", False),
        ("٣ أيام", "٧ أيام", True),
        ("日本語。", "日本語", True),
        ("not this", "not that", False),
    ],
)
def test_paragraphs_are_alike_but_for_case_accents_digits_and_punctuation(one, other, alike):
    assert (paragraph_hashes(one) == paragraph_hashes(other)).all() == alike


def test_lines_with_nothing_to_compare_have_no_hash():
    np.testing.assert_array_equal(paragraph_hashes("a\n\n --- \nb\n") == 0, [False, True, True, False, True])
