"""What becomes of records that cannot be used: counted by reason, the first named, and too many refused."""

import numpy as np
import pytest
from damaged_documents import IdDocuments, ScriptedDocuments

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.preparation.shards import sampled_texts
from llama_jax.data.rows.loader import text_bytes, usable_documents
from llama_jax.data.rows.mixture import Mixture, Source
from llama_jax.data.sources.bad_records import BadRecords, check_bad_fraction, counted
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.tokenizers import train_tokenizer


def error(reason: str, line: int) -> BadRecordError:
    return BadRecordError(reason, f"a.jsonl:{line}", f"is {reason}")


def test_the_first_five_are_named_and_all_are_counted() -> None:
    said: list[str] = []
    bad = BadRecords("a.jsonl", "skip", 0.5, say=said.append)
    for line in range(1, 8):
        bad.note(error("empty" if line % 3 else "not_json", line))
    assert bad.reasons == {"empty": 5, "not_json": 2} and bad.total == 7
    assert len(said) == 5
    assert said[0] == "bad record skipped: a.jsonl:1: is empty"
    assert said[4] == "bad record skipped: a.jsonl:5: is empty; further ones are only counted"
    assert counted(bad.reasons) == "5 empty, 2 not_json"


def test_as_many_are_left_out_as_are_allowed() -> None:
    bad = BadRecords("a.jsonl", "skip", 0.25)
    bad.check(1)
    bad.note(error("empty", 3))
    bad.check(4)
    with pytest.raises(UserError) as raised:
        bad.check(3, "records")
    assert str(raised.value) == (
        "data.max_bad_fraction: 1 of 3 records of a.jsonl cannot be used (1 empty), more than 0.25 of them; such as "
        "a.jsonl:3: is empty; repair the source, or allow more"
    )
    with pytest.raises(UserError, match=r"^data.max_bad_fraction: 1,500 of 2,000 documents of x cannot be used"):
        check_bad_fraction("x", BadRecords("x", "skip", 1.0).reasons + _many(1500), 2000, 0.5)


def _many(number: int):
    bad = BadRecords("x", "skip", 1.0)
    for line in range(number):
        bad.note(error("empty", line))
    return bad.reasons


def test_none_is_left_out_where_that_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"^a.jsonl:3: is empty \(--bad_records is fail\)$"):
        BadRecords("a.jsonl", "fail", 1.0, settings="--").note(error("empty", 3))


def test_settings_that_there_are_not_are_not_named() -> None:
    with pytest.raises(UserError, match=r"^a.jsonl:3: is empty$"):
        BadRecords("a.jsonl", "fail", 0.0, settings=None).note(error("empty", 3))
    bad = BadRecords("a.jsonl", "skip", 0.0, settings=None)
    bad.note(error("empty", 3))
    with pytest.raises(UserError) as raised:
        bad.check(3, "records")
    assert str(raised.value) == (
        "1 of 3 records of a.jsonl cannot be used (1 empty), more than 0 of them; such as a.jsonl:3: is empty; repair "
        "the source"
    )


def test_a_source_of_which_nothing_can_be_used_is_refused_whatever_is_allowed() -> None:
    bad = BadRecords("a.jsonl", "skip", 1.0)
    for line in (1, 2):
        bad.note(error("empty", line))
    with pytest.raises(UserError, match=r"^a.jsonl: holds nothing that can be used \(2 empty\), such as a.jsonl:1:"):
        bad.check(2)


def test_documents_that_can_be_used_are_those_that_are_measured(byte_tokenizer) -> None:
    documents = ScriptedDocuments(["one", "bad:empty", "three", "a\ud800", "bad:nul"])
    bad = BadRecords("here", "skip", 0.6)
    usable = usable_documents(documents, byte_tokenizer, bad)
    assert [usable[index] for index in range(len(usable))] == ["one", "three"]
    assert text_bytes(usable, byte_tokenizer) == 8
    assert bad.reasons == {"empty": 1, "surrogate": 1, "nul": 1}
    assert usable.identity() != documents.identity()
    bad = BadRecords("here", "skip", 0.5)
    first = usable_documents(documents, byte_tokenizer, bad, limit=2)  # reads three, of which one is bad
    assert (len(first), first[1], bad.reasons) == (2, "three", {"empty": 1})
    good = ScriptedDocuments(["one", "two"])
    assert usable_documents(good, byte_tokenizer, bad) is good  # and samples that were kept still fit
    with pytest.raises(UserError, match=r"^data.max_bad_fraction: 3 of 5 documents of here cannot be used"):
        usable_documents(documents, byte_tokenizer, BadRecords("here", "skip", 0.5))


def test_ids_beyond_the_vocabulary_are_bad_too(byte_tokenizer) -> None:
    bad = BadRecords("here", "skip", 1.0)
    usable = usable_documents(IdDocuments([[1, 70, 2], [1, 260, 2], [1], [1, -3]]), byte_tokenizer, bad)
    assert len(usable) == 1 and np.array_equal(usable[0], [1, 70, 2])
    assert bad.reasons == {"wrong_ids": 2, "empty": 1}


def test_a_tokenizer_is_trained_on_what_can_be_used_of_each_source() -> None:
    sources = [Source("a", ScriptedDocuments(["one", "bad:empty", "two"])), Source("b", ScriptedDocuments(["three"]))]
    mixture = Mixture(sources)
    counts = mixture.bad_records(DataConfig(max_bad_fraction=0.4))
    assert list(mixture.texts(counts)) == ["one", "two", "three"]
    assert [bad.reasons for bad in counts] == [{"empty": 1}, {}]
    message = r"^data.max_bad_fraction: 1 of 3 documents of a cannot be used \(1 empty\)"
    with pytest.raises(UserError, match=message):  # and not what sentencepiece makes of it
        train_tokenizer(mixture.texts(mixture.bad_records(DataConfig(max_bad_fraction=0.3))), 300)
    with pytest.raises(UserError, match=r"^a.jsonl:2: is empty \(data.bad_records is fail\)"):
        train_tokenizer(mixture.texts(mixture.bad_records(DataConfig(bad_records="fail"))), 300)
    with pytest.raises(UserError, match=r"^data.source: holds nothing that can be used \(1 empty, 1 nul\), such"):
        train_tokenizer(sampled_texts(ScriptedDocuments(["bad:empty", "bad:nul"]), 100), 300)
