import numpy as np
import pytest

from llama_jax.data.config import InstructionDataConfig
from llama_jax.data.instructions.examples import Examples
from llama_jax.data.instructions.rows import Planner, packed, padded_length, row_of


def examples(*sources: list[int]) -> Examples:
    """Examples of so many ids, by source; id i of example e is 100 e + i, and the odd ones bear loss."""
    lengths = [length for source in sources for length in source]
    ids = [100 * number + place for number, length in enumerate(lengths) for place in range(length)]
    return Examples(
        ids=np.array(ids, np.int32),
        bears_loss=np.array([token % 2 == 1 for token in ids], np.bool_),
        starts=np.cumsum([0, *lengths]),
        sources=np.cumsum([0, *map(len, sources)]),
    )


def planner(made: Examples, shares=(1.0,), seed=0, batch_size=4, **config) -> Planner:
    return Planner(made, shares, InstructionDataConfig(**{"sequence_length": 16, **config}), seed, batch_size)


def of_lengths(*lengths: int):
    return packed(np.arange(len(lengths)), np.array(lengths), 13, len(lengths))


def rows_of(plan):
    return [plan[row].tolist() for row in range(len(plan))]


def test_each_example_goes_where_it_leaves_the_least_room():
    # 7 and 7 open a row each, 5 leaves 1 place in one of them, which is where 1 goes; first-fit would take the other.
    assert rows_of(of_lengths(5, 1, 7, 7)) in ([[2, 0, 1], [3]], [[2], [3, 0, 1]])
    assert rows_of(of_lengths(13, 13)) == [[0], [1]]
    assert sorted(map(sorted, rows_of(of_lengths(3, 12, 10, 1)))) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("seed", range(3))
def test_packing_keeps_examples_whole_and_wastes_little(seed):
    lengths = np.random.RandomState(seed).randint(1, 65, 20_000)
    order = np.random.RandomState(seed).permutation(20_000)
    plan = packed(order, lengths, 64, len(lengths))
    assert sorted(plan.examples.tolist()) == list(range(20_000))
    used = np.array([lengths[plan[row]].sum() for row in range(len(plan))])
    assert used.max() <= 64 and lengths.sum() / (64 * len(plan)) > 0.98


@pytest.mark.parametrize("config", [{}, {"packing": "none"}, {"packing": "none", "group_by_length": True}])
def test_an_epoch_is_each_example_once_in_an_order_of_its_own(config):
    made = examples([2 + number % 15 for number in range(103)])
    plans = [planner(made, **config).plan(epoch) for epoch in range(3)]
    for plan in plans:
        assert sorted(plan.examples.tolist()) == list(range(103))
    assert len({tuple(plan.examples.tolist()) for plan in plans}) == 3
    again = planner(made, **config).plan(2)
    assert rows_of(again) == rows_of(plans[2])  # whatever was planned before
    assert rows_of(planner(made, seed=1, **config).plan(2)) != rows_of(plans[2])


def test_rows_of_an_epoch_are_not_in_order_of_length():
    made = examples([17] * 40 + [3] * 400)
    plan = planner(made).plan(0)
    counts = [len(plan[row]) for row in range(len(plan))]
    assert counts != sorted(counts) and set(counts) == {1, 8}


def test_sources_of_a_mixture_have_their_shares_and_epochs_of_their_own():
    made = examples([5] * 30, [6] * 100, [7] * 7)
    shares = (0.5, 0.3, 0.2)
    plans = planner(made, shares, packing="none")
    drawn = np.concatenate([plans.plan(epoch).examples for epoch in range(10)])
    assert len(drawn) == 1370
    sources = np.searchsorted(made.sources, drawn, side="right") - 1
    for source, share in enumerate(shares):
        given = drawn[sources == source]
        assert abs(len(given) - share * 1370) <= 3
        first, end = made.sources[source : source + 2].tolist()
        size = end - first
        epochs = [given[start : start + size] for start in range(0, len(given), size)]
        assert all(sorted(epoch.tolist()) == list(range(first, end)) for epoch in epochs[:-1])
        assert len(set(epochs[-1].tolist())) == len(epochs[-1])
    assert plans.examples_before(10).tolist() == np.bincount(sources).tolist()
    assert plans.examples_before(4).sum() == 4 * 137


def test_no_part_of_an_epoch_lacks_a_source():
    made = examples([5] * 500, [5] * 500)
    drawn = planner(made, (0.9, 0.1), packing="none").plan(0).examples
    assert all(abs((drawn[start : start + 100] >= 500).sum() - 10) <= 2 for start in range(0, 1000, 100))


def test_a_batch_holds_examples_of_similar_length():
    lengths = np.random.RandomState(0).randint(2, 18, 1030).tolist()
    made = examples(lengths)
    plan = planner(made, packing="none", group_by_length=True).plan(0)
    batches = [made.places[plan.examples[start : start + 4]] for start in range(0, 1028, 4)]
    spreads = [int(batch.max() - batch.min()) for batch in batches]
    assert np.mean(spreads) < 0.5
    assert batches[0].max() == made.places.max()
    longest = [int(batch.max()) for batch in batches]
    assert longest[1:50] != sorted(longest[1:50], reverse=True)
    ungrouped = planner(made, packing="none").plan(0)
    assert np.mean([np.ptp(made.places[ungrouped.examples[start : start + 4]]) for start in range(0, 1028, 4)]) > 5


def test_a_row_holds_whole_examples_and_then_padding():
    row = row_of(examples([3, 4, 2]), [1, 2], 6)
    assert row["tokens"].tolist() == [100, 101, 102, 200, 0, 0]
    assert row["targets"].tolist() == [101, 102, 103, 201, 0, 0]
    assert row["segment_ids"].tolist() == [1, 1, 1, 2, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 0, 0]
    assert row["loss_weights"].tolist() == [1, 0, 1, 1, 0, 0]
    assert {name: array.dtype.name for name, array in row.items()} == {
        **dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), "int32"),
        "loss_weights": "float32",
    }
    assert not any(array.any() for array in row_of(examples([3]), [], 6).values())


@pytest.mark.parametrize(("longest", "length"), [(2, 8), (9, 8), (10, 16), (17, 16), (21, 20)])
def test_rows_are_padded_to_a_multiple(longest, length):
    config = InstructionDataConfig(packing="none", pad_multiple=8, sequence_length=20)
    assert padded_length(examples([2, longest]), [np.array([0]), np.array([1])], config) == length
