import itertools

from llama_jax.data.rows import ledger
from llama_jax.data.rows.ledger import entered, mixed


def test_splitmix64_gives_its_published_numbers():
    # The first outputs of the reference implementation for the seed 1234567.
    seeds = [1234567 + number * 0x9E3779B97F4A7C15 for number in range(3)]
    assert [mixed(seed) for seed in seeds] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_ledger_does_not_depend_on_order_or_on_how_a_document_was_cut():
    whole = entered(entered(0, 3, 0, 100), 7, 0, 20)
    cuts = [(3, 40, 100), (7, 0, 1), (3, 0, 40), (7, 1, 20)]
    for order in itertools.permutations(cuts):
        total = 0
        for document, start, stop in order:
            total = entered(total, document, start, stop)
        assert total == whole


def test_pairs_left_out_swapped_or_of_another_document_show():
    totals = [
        entered(0, 3, 0, 10),
        entered(0, 3, 0, 9),
        entered(0, 3, 1, 10),
        entered(0, 4, 0, 10),
        entered(entered(0, 3, 0, 10), 3, 5, 6),
        # The same number of pairs and the same sum of places, but others.
        entered(entered(0, 3, 0, 4), 3, 3, 9),
    ]
    assert len({*totals}) == len(totals)


def test_long_documents_are_summed_alike(monkeypatch):
    expected = [entered(0, 5, start, stop) for start, stop in ((0, 90), (20, 30), (20, 90), (60, 90))]
    ledger._running_sums.cache_clear()
    monkeypatch.setattr(ledger, "_TABLE_PAIRS", 40)
    try:
        assert [entered(0, 5, start, stop) for start, stop in ((0, 90), (20, 30), (20, 90), (60, 90))] == expected
    finally:
        ledger._running_sums.cache_clear()
