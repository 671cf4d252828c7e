import itertools
import json

import numpy as np
import pytest
from sweeps import some

from llama_jax.core.errors import UserError
from llama_jax.data.config import InstructionDataConfig
from llama_jax.data.instructions.inspection import examples_report, examples_report_lines, first_rows
from llama_jax.data.instructions.loader import ExampleLoader, ExamplesPosition

KINDS = {
    "packed": {"packing": "pack"},
    "padded": {"packing": "none", "pad_multiple": 16},
    "grouped": {"packing": "none", "pad_multiple": 16, "group_by_length": True},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    records = [{"instruction": f"Say {n}", "output": "x" * (n * 7 % 23 + 1) + str(n)} for n in range(60)]
    file = tmp_path_factory.mktemp("data") / "a.json"
    file.write_text(json.dumps(records))
    return str(file)


@pytest.fixture
def make(source, byte_tokenizer):
    def make(batch_size=4, share=(0, 1), seed=0, say=lambda line: None, **config) -> ExampleLoader:
        """A loader for the part `share = (number, of how many)` of the rows."""
        number, parts = share
        settings = {"source": source, "template": "plain", "sequence_length": 48, "prefetch_batches": 1, **config}
        return ExampleLoader(
            InstructionDataConfig(**settings),
            byte_tokenizer,
            seed,
            batch_size_at=batch_size if callable(batch_size) else lambda step: batch_size,
            rows_of=lambda size: range(number * size // parts, (number + 1) * size // parts),
            say=say,
        )

    return make


def taken(loader, count, state=None):
    """Batches with the states after them."""
    try:
        return list(itertools.islice(loader.start(state), count))
    finally:
        loader.close()


def texts_of(batches, tokenizer) -> list[str]:
    """Of each example of the batches, in order."""
    found = []
    for rows, _ in batches:
        for tokens, targets, segments in zip(rows["tokens"], rows["targets"], rows["segment_ids"], strict=True):
            for segment in range(1, segments.max() + 1):
                places = segments == segment
                found.append(tokenizer.decode([*tokens[places][:1].tolist(), *targets[places].tolist()]))
    return found


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def ramp(step: int) -> int:
    return 2 if step < 3 else 4 if step < 9 else 8


@pytest.mark.parametrize("batch_size", some([4, ramp], [ramp]))
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_any_step_gives_the_same_batches(make, kind, batch_size):
    batches = taken(make(batch_size, **KINDS[kind]), 40)
    assert batches[-1][1].epoch >= 2 or batch_size is not ramp
    loader = make(batch_size, **KINDS[kind])
    for step in range(39):
        state = ExamplesPosition.from_json(json.loads(json.dumps(batches[step][1].to_json())))
        rest = taken(loader, 2, state)
        for (rows, after), (expected, after_expected) in zip(rest, batches[step + 1 :], strict=False):
            assert after == after_expected and same(rows, expected)


@pytest.mark.parametrize("kind", some(KINDS, ("packed",)))
@pytest.mark.parametrize("parts", some([2, 4], [2]))
def test_any_number_of_processes_reads_the_same_batches(make, kind, parts):
    loader = make(8, **KINDS[kind])
    whole = taken(loader, 20)
    shares = [taken(make(8, (number, parts), **KINDS[kind]), 20) for number in range(parts)]
    for step, (rows, state) in enumerate(whole):
        together = {name: np.concatenate([share[step][0][name] for share in shares]) for name in rows}
        assert same(rows, together)
        assert loader.position_of([share[step][1].to_json() for share in shares]) == state


def test_positions_of_different_batches_are_not_merged(make):
    loader = make()
    (_, first), (_, second) = taken(loader, 2)
    with pytest.raises(ValueError, match="positions after different batches cannot be merged"):
        loader.position_of([first.to_json(), second.to_json()])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_of_batches_has_each_example_once(make, byte_tokenizer, kind):
    loader = make(4, validation_fraction=0.1, **KINDS[kind])
    steps = loader.steps_of_epochs(1, 4)
    batches = taken(loader, steps + 1)
    found = texts_of(batches[:steps], byte_tokenizer)
    assert len(found) == len(set(found)) == 54
    assert [state.epoch for _, state in batches] == [0] * steps + [1]
    held_out = texts_of([(rows, None) for rows in loader.validation_batches(4)], byte_tokenizer)
    assert sorted(found + held_out) == sorted(f"Say {n}" + "x" * (n * 7 % 23 + 1) + str(n) for n in range(60))


def test_the_last_batch_of_an_epoch_is_filled_with_padding(make):
    loader = make(7, packing="none", validation_fraction=0.0)
    assert loader.steps_of_epochs(1, 7) == 9
    rows, state = taken(loader, 9)[-1]
    assert [bool(row.any()) for row in rows["segment_ids"]] == [True] * 4 + [False] * 3
    assert not rows["loss_weights"][4:].any() and not rows["tokens"][4:].any()
    assert (state.row, state.epoch_rows, state.step) == (63, 60, 9)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 9), (2.0, 18), (0.5, 5), (1.5, 14), (0.01, 1), (3, 27)])
def test_epochs_take_so_many_steps(make, epochs, steps):
    assert make(7, packing="none", validation_fraction=0.0).steps_of_epochs(float(epochs), 7) == steps


def pairs(batches) -> list[tuple]:
    """(ids of the example up to a target, target, position) of every target that bears loss."""
    found = []
    for rows, _ in batches:
        for row in range(len(rows["tokens"])):
            segments = rows["segment_ids"][row]
            for place in np.flatnonzero(rows["loss_weights"][row]):
                start = int(np.flatnonzero(segments == segments[place])[0])
                context = tuple(rows["tokens"][row, start : place + 1].tolist())
                found.append((context, int(rows["targets"][row, place]), int(rows["positions"][row, place])))
    return sorted(found)


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_packed_and_padded_batches_have_the_same_loss_bearing_tokens(make, train_on_prompt):
    found = []
    for config in KINDS.values():
        loader = make(4, train_on_prompt=train_on_prompt, **config)
        found.append(pairs(taken(loader, loader.steps_of_epochs(1, 4))))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == int(loader.data.training.bears_loss.sum()) > 500
    assert all(position == len(context) - 1 for context, _, position in found[0])


def test_padded_batches_are_as_long_as_their_longest_example_needs(make):
    loader = make(4, packing="none", pad_multiple=16, group_by_length=True)
    shapes = [rows["tokens"].shape for rows, _ in taken(loader, loader.steps_of_epochs(1, 4))]
    assert {length for _, length in shapes} == {16, 32, 48}
    assert {rows["tokens"].shape for rows, _ in taken(make(4), 10)} == {(4, 48)}


def test_validation_is_one_example_a_row_in_order(make, byte_tokenizer):
    loader = make(validation_examples=6)
    batches = list(loader.validation_batches(4))
    assert [len(rows["tokens"]) for rows in batches] == [4, 4]
    assert [row.max() for rows in batches for row in rows["segment_ids"]] == [1] * 6 + [0] * 2
    found = texts_of([(rows, None) for rows in batches], byte_tokenizer)
    assert found == [byte_tokenizer.decode(loader.data.validation[n][0].tolist()) for n in range(6)]
    assert list(make(validation_fraction=0.0).validation_batches(4)) == []


def test_prompts_are_those_given_or_the_first_held_out(make, byte_tokenizer):
    loader = make(validation_examples=6)
    (asked,) = loader.prompts(["Who?"], 3)
    assert (asked.text, asked.ids, asked.reference) == ("Who?", byte_tokenizer.encode("Who?", bos=True), None)
    held_out = loader.prompts([], 3)
    for number, prompt in enumerate(held_out):
        ids, bears_loss = loader.data.validation[number]
        opening = ids[: int(bears_loss.argmax())].tolist()
        assert prompt.ids == opening
        assert prompt.text + prompt.reference == byte_tokenizer.decode(ids.tolist())
    assert len(held_out) == 3 and loader.prompts([], 0) == []


@pytest.mark.slow
def test_the_fingerprint_follows_what_decides_the_rows(make, source, tmp_path):
    base = make().fingerprint
    assert make(8, (0, 2)).fingerprint == base and make(prefetch_batches=3, max_bad_fraction=0.5).fingerprint == base
    changed = [
        make(seed=1),
        make(sequence_length=32),
        make(packing="none"),
        make(packing="none", pad_multiple=64),
        make(packing="none", group_by_length=True),
        make(train_on_prompt=True),
        make(template="alpaca", sequence_length=48, train_on_prompt=True),
        make(validation_fraction=0.5),
        make(source="starter", sequence_length=256),
    ]
    assert len({base, *(loader.fingerprint for loader in changed)}) == 1 + len(changed)
    (tmp_path / "a.json").write_bytes(open(source, "rb").read())  # noqa: PTH123, SIM115
    assert make(source=f"{tmp_path}/a.json").fingerprint == base


def test_a_record_of_progress_tells_epochs_drops_and_cuts(make, tmp_path):
    good = [{"instruction": f"Say {n}", "output": "yes"} for n in range(6)]
    (tmp_path / "a.json").write_text(
        json.dumps([*good, {"instruction": "x"}, {"instruction": "a", "output": "b" * 99}])
    )
    loader = make(
        2,
        source=f"{tmp_path}/a.json",
        packing="none",
        max_bad_fraction=0.5,
        validation_fraction=0.0,
        overlong="truncate",
    )
    states = [state for _, state in taken(loader, 6)]
    name = f"{tmp_path}/a.json"
    assert [loader.progress_record(state)["epochs"][name] * 7 for state in states] == pytest.approx([2, 4, 6, 7, 9, 11])
    assert loader.progress_record(states[0])["dropped_records"] == {"missing_field": 1}
    assert loader.progress_record(states[0])["truncated_examples"] == 1
    assert "dropped_records" not in make().progress_record(states[0])


def test_progress_of_a_mixture_is_told_by_source(make, source, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": f"{n}", "completion": "z"} for n in range(20)]))
    other = f"{tmp_path}/b.json"
    loader = make(8, source="starter", mixture=((source, 1.0), (other, 1.0)), packing="none", validation_fraction=0.0)
    batches = taken(loader, 10)  # an epoch is 80 examples, half of them of each source
    epochs = loader.progress_record(batches[-1][1])["epochs"]
    assert epochs == pytest.approx({source: 40 / 60, other: 40 / 20}, abs=0.1)


def test_what_is_made_ahead_can_fail_and_be_closed(make):
    loader = make()
    batches = loader.start()
    next(batches)
    loader.close()
    assert len(list(batches)) <= 5  # what was ready; without end if it went on
    with pytest.raises(UserError, match=r"data.source: no file or directory nowhere\.json"):
        make(source="nowhere.json")


@pytest.mark.slow
def test_the_starter_set_needs_no_file(byte_tokenizer):
    loader = ExampleLoader(InstructionDataConfig(), byte_tokenizer, 0, batch_size_at=lambda step: 8)
    assert len(loader.data.training) > 280 and loader.layout.name == "alpaca"
    assert loader.description()[0].startswith("starter: 313 records (alpaca), 297 examples to train on, 16 held out")


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_tells_what_examples_amount_to(make, byte_tokenizer, kind):
    loader = make(4, **KINDS[kind])
    rows = first_rows(loader, 1000)
    report = examples_report(loader, byte_tokenizer, 4, 1000)
    training = loader.data.training
    assert report["rows"]["rows"] == len(rows) == len(loader._planner.plan(0))
    assert report["rows"]["segments_split_share"] == 0
    assert report["loss_share"] == pytest.approx(training.bears_loss.mean())
    assert report["length_percentiles"]["100"] == training.places.max() + 1
    assert report["steps_per_epoch"] == loader.steps_of_epochs(1, 4)
    lines = list(examples_report_lines(json.loads(json.dumps(report))))
    assert lines[0].endswith(
        "60 records (alpaca), 57 examples to train on, 3 held out, 100.0% of the examples of an epoch"
    )
    assert len(first_rows(loader, 3)) == 3
