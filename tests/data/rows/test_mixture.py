import json
from collections import Counter

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, Source, open_mixture
from llama_jax.data.rows.progress import progress
from llama_jax.data.sources.documents import Documents, TextDocuments, in_order

LLAMA = (0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02)


def weighted(*weights: float, documents: int = 4) -> Mixture:
    texts = [TextDocuments([f"{number}.{index}" for index in range(documents)]) for number in range(len(weights))]
    return Mixture([Source(f"source {number}", texts[number], weight) for number, weight in enumerate(weights)])


def texts_in(documents: Documents) -> list[str]:
    return [str(document) for document in in_order(documents)]


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_each_source_has_its_share_of_any_stretch_of_rows(seed):
    mixture = weighted(*LLAMA)
    chosen = np.array([mixture.source_of(row, seed) for row in range(10_000)])
    for number, share in enumerate(LLAMA):
        taken = np.cumsum(chosen == number)
        assert abs(taken[-1] - share * 10_000) <= 0.01 * 10_000 * share + 2
        # However far from the beginning, never more than a few rows ahead or behind.
        assert np.abs(taken - share * np.arange(1, 10_001)).max() < 4


def test_the_share_holds_at_the_end_of_a_long_run_and_within_a_stream():
    mixture = weighted(3.0, 1.0)
    late = [mixture.source_of(row, 0) for row in range(10**12, 10**12 + 1000)]
    assert Counter(late)[1] in range(247, 254)
    stream = [mixture.source_of(64 * row + 17, 0) for row in range(1000)]
    assert Counter(stream)[1] in range(245, 256)


def test_seeds_choose_differently_and_one_source_gives_all():
    mixture = weighted(1.0, 1.0)
    choices = {tuple(mixture.source_of(row, seed) for row in range(20)) for seed in range(8)}
    assert len(choices) > 4
    assert {weighted(5.0).source_of(row, 3) for row in range(100)} == {0}


def test_batches_hold_each_source_in_its_share(byte_tokenizer):
    names = ("a", "b", "c")
    mixture = Mixture(
        [Source(name, TextDocuments([name * 7]), weight) for name, weight in zip(names, (6.0, 3.0, 1.0), strict=True)]
    )
    source = Loader(mixture, byte_tokenizer, DataConfig(sequence_length=9), 0, batch_size_at=lambda step: 64).start()
    batches = [next(source) for _ in range(10)]
    source.close()
    found = Counter()
    for rows, _ in batches:
        for row in rows["tokens"]:  # BOS, a space, seven letters: each row is one document
            assert len({*row[2:].tolist()}) == 1
            found[int(row[2]) - 3] += 1
    told = progress(batches[-1][1].streams, mixture)
    for name, expected in {"a": 384, "b": 192, "c": 64}.items():
        assert abs(found[ord(name)] - expected) <= 2
        assert told[name].rows == found[ord(name)]
        assert told[name].epochs == float(found[ord(name)])


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_positive(weight):
    with pytest.raises(UserError, match=r"data.mixture: weight \S+ of 'b.jsonl' must be positive"):
        DataConfig(mixture=(("a.jsonl", 1.0), ("b.jsonl", float(weight))))


def test_a_source_is_named_once():
    with pytest.raises(UserError, match=r"'a\.jsonl' is named twice"):
        DataConfig(mixture=(("a.jsonl", 1.0), ("a.jsonl", 2.0)))


def test_a_mixture_and_another_source_contradict_each_other():
    with pytest.raises(UserError, match=r"data\.source: b\.jsonl contradicts data\.mixture"):
        DataConfig(source="b.jsonl", mixture=(("a.jsonl", 1.0),))


def test_the_mixture_takes_the_place_of_the_source(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": name * n}) + "\n" for n in range(1, 4)))
    pairs = ((str(tmp_path / "a.jsonl"), 3.0), (str(tmp_path / "b.jsonl"), 1.0))
    mixture = open_mixture(DataConfig(mixture=pairs))
    assert [source.name for source in mixture.sources] == [name for name, _ in pairs]
    assert mixture.shares == (0.75, 0.25)
    assert list(mixture.texts(mixture.bad_records(DataConfig()))) == ["a", "aa", "aaa", "b", "bb", "bbb"]
    assert mixture.description()[0] == f"{tmp_path}/a.jsonl: 3 documents to train on, 75.0% of the rows"
    assert len(open_mixture(DataConfig(source=pairs[0][0]))) == 1


def test_some_of_each_source_is_held_out():
    training, held_out = weighted(1.0, 5.0, documents=50).hold_out(0.1)
    assert [len(source.documents) for source in training.sources] == [45, 45]
    assert training.shares == (1 / 6, 5 / 6)
    texts = texts_in(held_out)
    assert Counter(text.partition(".")[0] for text in texts) == {"0": 5, "1": 5}
    assert texts == [held_out[index] for index in range(len(held_out))]
    assert len({*texts, *training.texts(training.bad_records(DataConfig()))}) == 100
    with pytest.raises(IndexError):
        held_out[10]
    with pytest.raises(UserError, match=r"at least 2 documents \(source 1\)"):
        Mixture([*weighted(1.0).sources, Source("source 1", TextDocuments(["only"]))]).hold_out(0.1)


def test_documents_of_several_sources_are_read_together_in_the_order_asked_for():
    _, held_out = weighted(1.0, 1.0, 1.0, documents=20).hold_out(0.2)
    wanted = [11, 0, 5, 4, 3, 11]
    assert list(held_out.read_many(wanted)) == [held_out[index] for index in wanted]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_tokenizer_that_did_not_prepare_the_ids_is_refused(byte_tokenizer, tokenizer):
    prepared = Source("shards", TextDocuments(["a", "b"]), tokenizer_fingerprint=byte_tokenizer.fingerprint)
    mixture = Mixture([*weighted(1.0).sources, prepared])
    mixture.check_tokenizer(byte_tokenizer)
    with pytest.raises(UserError, match="the ids of shards were made with") as error:
        Loader(mixture, tokenizer, DataConfig(), 0, batch_size_at=lambda step: 8)
    assert "\n" not in str(error.value)
    assert byte_tokenizer.fingerprint[:12] in str(error.value) and tokenizer.fingerprint[:12] in str(error.value)


def test_the_fingerprint_follows_the_mixture(byte_tokenizer):
    def fingerprint(mixture: Mixture) -> str:
        return Loader(mixture, byte_tokenizer, DataConfig(), 0, batch_size_at=lambda step: 8).fingerprint

    mixture = weighted(1.0, 2.0)
    others = [weighted(1.0, 3.0), weighted(1.0), weighted(1.0, 2.0, documents=5), Mixture(mixture.sources[::-1])]
    assert len({fingerprint(other) for other in (mixture, *others)}) == 5
    assert fingerprint(weighted(2.0, 4.0)) == fingerprint(mixture)
