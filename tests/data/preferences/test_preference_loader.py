"""From records to rows: what is cut, left out and counted, how rows are laid, which examples are never mixed."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llama_jax.core.batches import completion_batch
from llama_jax.core.errors import UserError
from llama_jax.data.config import InstructionDataConfig, PreferenceDataConfig
from llama_jax.data.instructions.inspection import first_rows
from llama_jax.data.instructions.stages import OfStage
from llama_jax.data.preferences.chosen import InstructionOrPairData
from llama_jax.data.preferences.examples import starter_records
from llama_jax.data.preferences.loader import PreferenceLoader
from llama_jax.data.preferences.records import Kind, compared
from llama_jax.data.preferences.rows import ending_before
from llama_jax.data.rows.display import segments_of
from llama_jax.data.rows.inspection import RowStatistics
from llama_jax.data.sources.record_text import Record

EOS = 2


class Records(list):
    def identity(self) -> str:
        return "records"


@pytest.fixture
def make(byte_tokenizer, tmp_path):
    def make(records, kind: Kind = "pairs", batch_size=4, said=None, share=(0, 1), **config) -> PreferenceLoader:
        file = tmp_path / "a.json"
        file.write_text(json.dumps(records))
        number, parts = share
        settings = {"source": str(file), "template": "plain", "sequence_length": 64, "pad_multiple": 8}
        return PreferenceLoader(
            PreferenceDataConfig(**settings | {"validation_fraction": 0.0, "prefetch_batches": 1} | config),
            byte_tokenizer,
            kind,
            0,
            batch_size_at=lambda step: batch_size,
            rows_of=lambda size: range(number * size // parts, (number + 1) * size // parts),
            say=([] if said is None else said).append,
        )

    return make


def taken(loader, count, position=None):
    try:
        return list(itertools.islice(loader.start(position), count))
    finally:
        loader.close()


def pairs(count, prompts=None):
    prompts = prompts or count
    return [{"prompt": f"q{n % prompts}?", "chosen": f"yes{n}", "rejected": "no" * (n % 4 + 1)} for n in range(count)]


def test_a_pair_is_two_sequences_of_one_row_with_their_ends_told(make, byte_tokenizer):
    loader = make([{"prompt": "ab", "chosen": "cd", "rejected": "cef", "margin": 0.5}], batch_size=2)
    ((rows, _),) = taken(loader, 1)
    encode = byte_tokenizer.encode
    one, other = ([1, *encode("ab"), *encode("cd")[1:], EOS], [1, *encode("ab"), *encode("cef")[1:], EOS])
    ids = [*one, *other]
    assert rows["tokens"][0].tolist() == [*ids, *[0] * (16 - len(ids))]
    assert rows["segment_ids"][0].tolist() == [1] * 7 + [2] * 8 + [0]
    assert rows["positions"][0].tolist() == [*range(7), *range(8), 0]
    assert rows["targets"][0].tolist() == [*one[1:], 0, *other[1:], 0, 0]
    assert rows["loss_weights"][0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert (rows["starts"][0].tolist(), rows["ends"][0].tolist()) == ([[0, 7]], [[6, 14]])
    assert (rows["divergence"][0].tolist(), rows["labels"][0].tolist()) == ([5], [0.5])
    assert rows["example_weights"].tolist() == [[1], [0]] and not rows["segment_ids"][1].any()
    assert set(rows) == {name for name in completion_batch(1, 2).arrays() if name != "normalizer"}
    assert loader.training.lengths.tolist() == [[3, 4]]


def test_a_sequence_ends_before_what_is_padding_to_other_tools(make):
    ((rows, _),) = taken(make([{"prompt": "ab", "chosen": "cd", "rejected": "cef"}], batch_size=2), 1)
    found = ending_before(rows, EOS)
    assert (rows["ends"] - found["ends"])[0].tolist() == [[1, 1]] and found["tokens"] is rows["tokens"]
    assert np.array_equal(ending_before(rows, 77)["ends"], rows["ends"])
    alone = rows | {"tokens": np.full_like(rows["tokens"], EOS)}
    assert np.array_equal(ending_before(alone, EOS)["ends"], rows["starts"])


def test_packed_rows_hold_each_pair_once_and_no_more_than_allowed(make, byte_tokenizer):
    records = pairs(40)
    loader = make(records, pairs_per_row=3, sequence_length=96)
    batches = taken(loader, loader.steps_of_epochs(1, 4))
    found = Counter()
    for rows, _ in batches:
        assert rows["tokens"].shape == (4, 96) and rows["starts"].shape == (4, 3, 2)
        for row, slot in zip(*np.nonzero(rows["example_weights"]), strict=True):
            start, end = rows["starts"][row, slot, 0], rows["ends"][row, slot, 0]
            found[byte_tokenizer.decode(rows["tokens"][row, start : end + 1].tolist())] += 1
            assert (rows["segment_ids"][row, start : end + 1] == 2 * slot + 1).all()
    assert found == {f"{record['prompt']}{record['chosen']}": 1 for record in records}
    assert max(rows["example_weights"].sum(axis=1).max() for rows, _ in batches) == 3


def test_shares_of_the_batches_make_up_the_whole_and_any_step_is_gone_on_from(make):
    whole = taken(make(pairs(21)), 9)
    for share in ((0, 2), (1, 2)):
        parts = taken(make(pairs(21), share=share), 9)
        rows = slice(2 * share[0], 2 * share[0] + 2)
        assert all(
            np.array_equal(part[name], full[name][rows])
            for (part, _), (full, _) in zip(parts, whole, strict=True)
            for name in part
        )
    later = taken(make(pairs(21)), 3, whole[5][1])
    assert all(
        np.array_equal(one[name], other[name])
        for (one, _), (other, _) in zip(later, whole[6:], strict=True)
        for name in one
    )


@pytest.mark.parametrize(
    ("overlong", "texts"), [("keep_start", ("qqqq?yesye", "qqqq?nonon")), ("keep_end", ("q?yesyesyes", "qq?nononono"))]
)
def test_long_answers_are_cut_as_asked_and_counted(make, byte_tokenizer, overlong, texts):
    records = [{"prompt": "qqqq?", "chosen": "yes" * 3, "rejected": "no" * 4}]
    loader = make(records, overlong=overlong, max_length=12)
    assert tuple(byte_tokenizer.decode(ids.tolist()) for ids, _ in loader.training[0]) == texts
    assert all(not learned[0] and learned[-1] for _, learned in loader.training[0])
    ends_with_eos = overlong == "keep_end"
    assert all((ids[-1] == EOS) == ends_with_eos for ids, _ in loader.training[0])
    assert "1 cut to their " in loader.description()[0] and loader.data.counts[0].truncated == 1


def test_what_teaches_nothing_is_left_out_by_reason(make):
    said = []
    records = [
        *pairs(4),
        {"prompt": "a", "chosen": "x", "rejected": "x"},
        {"prompt": "a", "chosen": "x" * 40, "rejected": "y"},
        {"prompt": "a", "chosen": "", "rejected": "y"},
    ]
    loader = make(records, said=said)
    assert loader.data.counts[0].left_out == {"equal": 1, "overlong": 1, "empty": 1} and len(loader.training) == 4
    assert "a.json[5]: 44 tokens are more than the 32 that a prompt with an answer may have" in "\n".join(said)
    cut = make([*pairs(4), {"prompt": "a" * 40, "chosen": "x", "rejected": "yy"}], overlong="keep_start")
    assert cut.data.counts[0].left_out == {"cut_to_nothing": 1}
    same = {"prompt": "a", "chosen": "x" * 40, "rejected": "x" * 41}
    assert make([*pairs(4), same], overlong="keep_start").data.counts[0].left_out == {"equal_when_cut": 1}


def test_no_prompt_is_both_held_out_and_trained_on(make):
    loader = make(pairs(60, prompts=20), validation_examples=12)
    first = {name: {tuple(getattr(loader, name)[n][0][0][:5].tolist()) for n in range(len(getattr(loader, name)))}
             for name in ("training", "validation")}  # fmt: skip
    assert not first["training"] & first["validation"] and len(loader.validation) == 12
    left = loader.data.counts[0].left_out["prompt_held_out"]
    assert left > 0 and len(loader.training) == 48 - left


def test_no_prompt_that_one_source_holds_out_is_trained_on_from_another(byte_tokenizer, tmp_path):
    names = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for name, count in zip(names, (30, 20), strict=True):
        Path(name).write_text(json.dumps([*pairs(count), {"prompt": 3, "chosen": "a", "rejected": "b"}]))
    config = PreferenceDataConfig(
        mixture=((names[0], 1.0), (names[1], 1.0)), template="plain", validation_examples=20, max_bad_fraction=0.5
    )
    loader = PreferenceLoader(config, byte_tokenizer, "pairs", 0, batch_size_at=lambda step: 4)
    asked = [
        {tuple(examples[n][0][0][:5].tolist()) for n in range(len(examples))}
        for examples in (loader.training, loader.validation)
    ]
    assert not asked[0] & asked[1]
    assert [counts.left_out["prompt_held_out"] > 0 for counts in loader.data.counts] == [True, True]
    assert [counts.bad["wrong_type"] for counts in loader.data.counts] == [1, 1]


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_a_row_is_shown_with_the_prompt_before_each_answer_however_it_is_laid(kind, byte_tokenizer, tmp_path):
    source, shown, counted = str(tmp_path / "a.json"), [], []
    Path(source).write_text(json.dumps(pairs(5)))
    config = PreferenceDataConfig(source=source, template="plain", validation_fraction=0.0, sequence_length=64)
    for share in (False, True):
        loader = PreferenceLoader(config, byte_tokenizer, kind, 0, batch_size_at=lambda step: 2, share_prompts=share)
        rows = first_rows(loader, 4)
        shown.append([segments_of(row, byte_tokenizer) for row in rows])
        statistics = RowStatistics()
        for row in rows:
            statistics.add(row, byte_tokenizer)
        counted.append(statistics.to_json())
    assert shown[0] == shown[1] and {len(each) for each in shown[1]} == {2}
    first = shown[1][0][0]
    assert first.pieces[0].text.startswith("<s>q") and not first.pieces[0].bears_loss
    assert first.pieces[-1].text.endswith("</s>") and first.pieces[-1].bears_loss and first.opens and first.closes
    assert [each["segments_per_row"] for each in counted] == [1, 1]
    assert [each["segments_split_share"] for each in counted] == [0, 0] == [each["rows_cut_share"] for each in counted]


def test_a_prompt_is_of_one_stage_in_every_format_and_all_are_of_one(byte_tokenizer):
    texts = [{"prompt": f"q{n}?", "chosen": "yes", "rejected": "no"} for n in range(400)]
    turns = [
        {"chosen": f"\n\nHuman: q{n}?\n\nAssistant: a", "rejected": f"\n\nHuman: q{n}?\n\nAssistant: b"}
        for n in range(400)
    ]

    def numbers(records, stage):
        source = Records(Record(str(n), each) for n, each in enumerate(records))
        staged = OfStage(source, (2.0, 4.0, 4.0), stage, lambda record: compared(record, "pairs").prompt)
        return [int(staged[n].place) for n in range(len(staged))]

    stages = [numbers(texts, stage) for stage in (1, 2, 3)]
    assert sorted(itertools.chain(*stages)) == list(range(400))
    assert np.allclose([len(stage) / 400 for stage in stages], (0.2, 0.4, 0.4), atol=0.05)
    assert [numbers(turns, stage) for stage in (1, 2, 3)] == stages


def test_supervised_tuning_takes_the_chosen_answers_of_its_stage(make, byte_tokenizer, tmp_path):
    records = pairs(30)
    rewarded = make(records, split=(1.0, 1.0), stage=2)  # writes a.json
    config = InstructionDataConfig(
        source=str(tmp_path / "a.json"), template="plain", validation_fraction=0.0, split=(1.0, 1.0), stage=1
    )
    learned = InstructionOrPairData(config, rewarded.layout).training
    first = [learned[n][0].tolist() for n in range(len(learned))]
    second = [rewarded.training[n][0][0].tolist() for n in range(len(rewarded.training))]
    texts = {byte_tokenizer.decode(ids) for ids in [*first, *second]}
    assert texts == {f"{record['prompt']}{record['chosen']}" for record in records} and len(first) + len(second) == 30
    assert 5 < len(first) < 25


def test_judged_answers_meet_the_next_one_of_their_batch_in_every_epoch(make, byte_tokenizer):
    records = [{"prompt": f"q{n}?", "completion": f"a{n}", "label": n % 2 == 0} for n in range(10)]
    loader = make(records, "labels", pad_multiple=64)
    epochs = [[], []]
    for rows, position in taken(loader, 6):
        for row in range(4):
            if rows["example_weights"][row, 0]:
                spans = zip(rows["starts"][row, 0], rows["ends"][row, 0], strict=True)
                texts = [byte_tokenizer.decode(rows["tokens"][row, a : b + 1].tolist()) for a, b in spans]
                epochs[position.epoch].append((*texts, rows["labels"][row, 0]))
    assert epochs[0] == epochs[1] and len(epochs[0]) == 10
    for start in (0, 4, 8):
        group = epochs[0][start : start + 4]
        for (own, other, label), (following, _, _) in zip(group, [*group[1:], group[0]], strict=True):
            number = int(own[1:].partition("?")[0])
            assert own == f"q{number}?a{number}" and label == float(number % 2 == 0)
            assert other == f"q{number}?{following.partition('?')[2]}"


def test_pairs_serve_as_judged_answers(make):
    loader = make(pairs(6), "labels")
    assert sorted(loader.training.labels.tolist()) == [0.0] * 6 + [1.0] * 6 and loader.training.members == 2


def test_the_reference_is_put_beside_its_examples(make):
    loader = make(pairs(11), validation_examples=3)
    before = loader.fingerprint
    numbers = np.arange(16, dtype=np.float32).reshape(8, 2)
    loader.set_reference(numbers, np.zeros((3, 2)))
    found = [rows["reference"][rows["example_weights"] > 0] for rows in loader.batches_in_order(4)]
    assert np.array_equal(np.concatenate(found), numbers) and loader.fingerprint == before
    ((rows, _),) = taken(loader, 1)
    assert len({tuple(pair) for pair in rows["reference"][:, 0].tolist()}) == 4


@pytest.mark.parametrize(
    ("records", "kind", "config", "message"),
    [
        (pairs(4), "scores", {}, r"records have prompt, chosen, rejected; wanted: scored answers have"),
        (pairs(4), "pairs", {"max_length": 40}, "data.max_length: 2 sequences of 40 tokens do not fit into a row of"),
        (pairs(4), "labels", {"pairs_per_row": 2}, "data.pairs_per_row: judged answers stand one a row; use 1"),
        (pairs(4, prompts=1), "pairs", {"validation_examples": 1}, r"\(3 prompt_held_out\); .* or hold out fewer \("),
        (pairs(4), "pairs", {"split": (1.0, 1.0)}, "data.stage: goes with data.split"),
        (pairs(4), "pairs", {"split": (1.0, 0.0), "stage": 2}, "data.stage: 2 must be the number of one of the shares"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, records, kind, config, message):
    with pytest.raises(UserError, match=message):
        make(records, kind, **config)


def test_the_set_that_comes_along_has_a_prompt_and_two_answers_each():
    records = starter_records()
    assert len(records) == 120 and len({record.values["prompt"] for record in records}) == 120
    assert all(record.values["chosen"] != record.values["rejected"] for record in records)
