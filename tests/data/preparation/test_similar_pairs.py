"""Which pairs are found in buckets, against comparing all with all; and union-find against a plain one."""

import random

import numpy as np
import pytest
from planted import changed, random_text

from llama_jax.data.preparation.near import pairs as pairs_module
from llama_jax.data.preparation.near.forest import Forest
from llama_jax.data.preparation.near.minhash import MinHash, signature_keys
from llama_jax.data.preparation.near.pairs import BANDED, Compared, buckets_of, similar_pairs

MINHASH = MinHash()


def found(signatures, numbers, least, compared=None):
    """The similar pairs of documents with these signatures and numbers, as (smaller, larger, equal)."""
    bands = np.empty((len(signatures), MINHASH.bands), BANDED)
    bands["key"], bands["signature"] = MINHASH.band_keys(signatures), signature_keys(signatures)[:, None]
    bands["document"] = numbers[:, None]
    order = np.argsort(numbers)
    buckets = buckets_of(bands.reshape(-1), MINHASH.permutations)

    def load(documents):
        return signatures[order[np.searchsorted(numbers, documents, sorter=order)]]

    each = similar_pairs(buckets, load, least, compared or Compared())
    return {(min(a, b), max(a, b), n) for some in each for a, b, n in zip(*map(np.ndarray.tolist, some), strict=True)}


def test_every_pair_with_a_band_in_common_that_is_similar_is_found():
    rng = random.Random(3)
    texts = []
    for _ in range(20):
        text = random_text(rng, 80)
        texts += [text, text, *(changed(text, share, rng) for share in (0.0, 0.02, 0.05, 0.1))]
    signatures = MINHASH.signatures(texts)
    keys = MINHASH.band_keys(signatures)
    numbers = np.arange(len(texts))
    equal = (signatures[:, None] == signatures[None]).sum(axis=2)
    banded = (keys[:, None] == keys[None]).any(axis=2)
    least = 60
    expected = {(a, b, equal[a, b]) for a, b in zip(*np.nonzero(banded & (equal >= least)), strict=True) if a < b}
    pairs = found(signatures, numbers, least)
    # Of texts with the same signature, each is joined with the one before, and the first stands for them.
    assert pairs <= expected
    assert expected - pairs and all(b % 6 == 1 or a % 6 == 1 for a, b, _ in expected - pairs)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    texts_of = {(texts[a], texts[b], n) for a, b, n in pairs} | {(texts[b], texts[a], n) for a, b, n in pairs}
    again = found(signatures[shuffled], numbers, least)
    assert all((texts[shuffled[a]], texts[shuffled[b]], n) in texts_of for a, b, n in again)
    assert len(again) == len(pairs)


@pytest.mark.parametrize("loaded", [2**15, 100])
def test_a_large_bucket_is_joined_by_few_comparisons_whatever_the_order(monkeypatch, loaded):
    monkeypatch.setattr(pairs_module, "_LOADED", loaded)
    count = 300
    signatures = np.random.default_rng(0).integers(0, 2**32, (count, MINHASH.permutations), np.uint32)
    signatures[:, : 8 * 2] = 7  # all agree in two bands, and else in none
    compared = Compared()
    pairs = found(signatures, np.arange(count), 16, compared)
    assert compared.large_buckets == 2
    if loaded > count:
        assert compared.pairs == 2 * count * pairs_module.NEIGHBOURS
        assert compared.pairs + compared.left_out == 2 * count * (count - 1) // 2
    forest = Forest(count)
    forest.join(*np.array([pair[:2] for pair in sorted(pairs)]).T)
    assert not forest.roots(np.arange(count)).any()
    order = np.random.default_rng(1).permutation(count)
    again = found(signatures[order], np.arange(count), 16)
    assert {tuple(sorted((order[a], order[b]))) for a, b, _ in again} == {pair[:2] for pair in pairs}


def test_documents_with_one_signature_cost_no_comparisons():
    signatures = np.tile(MINHASH.signatures(["the same words in all of these texts"]), (5000, 1))
    compared = Compared()
    pairs = found(signatures, np.arange(5000), 84, compared)
    assert pairs == {(number, number + 1, MINHASH.permutations) for number in range(4999)}
    assert compared.left_out == 0


@pytest.mark.parametrize("chain", [True, False])
def test_groups_are_those_of_a_plain_union_find(chain):
    count, rng = 3000, np.random.default_rng(4)
    pairs = np.stack([np.arange(count - 1), np.arange(1, count)]).T if chain else rng.integers(0, count, (1400, 2))
    groups = {number: {number} for number in range(count)}
    for a, b in pairs.tolist():
        if groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for each in groups[b]:
                groups[each] = groups[a]
    forest = Forest(count)
    for some in np.array_split(rng.permutation(pairs), 7):
        forest.join(some[:, 0], some[:, 1])
    assert forest.roots(np.arange(count)).tolist() == [min(groups[number]) for number in range(count)]
