"""Tallies: what they count, and that they come out the same whoever counted which documents in which order."""

import itertools
import json
import random

from llama_jax.data.preparation.reading import Edit
from llama_jax.data.preparation.report.origins import MOST_ORIGINS, OTHERS, Origins, origins_of
from llama_jax.data.preparation.report.tally import MEASURE_BOUNDS, SAMPLES, Place, Tally, excerpt, taken_out
from llama_jax.data.sources.documents import TextDocuments
from llama_jax.data.sources.opening import FileDocuments


def count(tally: Tally, number: int) -> None:
    """One of many different documents, of which every fourth is kept."""
    place, text = Place(number, f"part{number % 3}", number % 4), f"text {number % 40}\né"
    tally.read(place, text)
    tally.tagged(place, text, {"language": "de" if number % 5 else "en"}, is_dropped=number % 5 == 0)
    tally.measured({"perplexity": 1.3**number % 1e9})
    tally.edited(place, Edit("c4", {"javascript": 2, "short": number % 2}, "7 bytes" + text, text, 0))
    if number % 4:
        tally.dropped(place, text, {"reason": f"rule{number % 4}", "measured": number})
    else:
        tally.kept(place, text)


def test_a_tally_is_the_same_whoever_counted_what_in_which_order():
    def by(shares: list[list[int]]) -> str:
        tallies = []
        for share in shares:
            tallies.append(Tally())
            for number in share:
                count(tallies[-1], number)
        tallies = [Tally.from_json(json.loads(json.dumps(each.to_json()))) for each in tallies]
        half = len(tallies) // 2
        return json.dumps(Tally.merged([Tally.merged(tallies[half:]), Tally.merged(tallies[:half])]).to_json())

    whole = by([list(range(120))])
    for seed in range(3):
        numbers = random.Random(seed).sample(range(120), 120)
        cuts = sorted(random.Random(seed).sample(range(120), seed))
        assert by([numbers[a:b] for a, b in zip([0, *cuts], [*cuts, 120], strict=True)]) == whole


def test_what_was_read_is_kept_or_dropped():
    tally = Tally()
    for number in range(120):
        count(tally, number)
    told = tally.to_json()
    source = told["sources"]["part1"]
    assert source["read"]["documents"] == 40
    outcomes = [source["kept"], *source["dropped"].values()]
    assert {name: sum(each[name] for each in outcomes) for name in ("documents", "bytes")} == source["read"]
    assert source["edited"] == {"c4": {"documents": 40, "bytes": 280, "lines": {"javascript": 80, "short": 20}}}
    assert source["tags"]["language"]["en"]["dropped"] == source["tags"]["language"]["en"]["documents"] == 8
    assert source["tags"]["language"]["de"]["dropped"] == 0
    # Of texts that are the same there is one sample, the first; rule1 drops ten different ones.
    samples = told["samples"]["dropped"]["rule1"]
    assert len(samples) == SAMPLES and all(each["document"] < 40 for each in samples)
    assert [each["key"] for each in samples] == sorted({each["key"] for each in samples})


def test_measures_are_counted_between_fixed_bounds():
    tally = Tally()
    for value in (0.0, 0.00005, 1.0, 1.05, 1.13, 7.0, 7.4, 100.0, 99.9, 1e12):
        tally.measured({"perplexity": value})
    expected = {"0": 2, "1": 2, "1.1": 1, "7": 2, "100": 1, "90": 1, "9e+08": 1}
    assert tally.to_json()["measures"]["perplexity"] == expected
    assert all(1 < upper / lower < 1.1251 for lower, upper in itertools.pairwise(MEASURE_BOUNDS))


def test_an_excerpt_shows_the_beginning_the_place_and_the_end():
    text = "".join(f"<{number}>" for number in range(2000))
    shown = excerpt(text, text.index("<1000>"))
    assert shown.startswith("<0>") and "<1000>" in shown and shown.endswith("<1999>") and len(shown) < 1000
    assert excerpt("short") == "short" and excerpt("x" * 641).count("[…]") == 1


def test_what_an_edit_takes_out_is_shown_line_by_line():
    assert taken_out("a\nb\na\nc\n", "a\nc\n") == "b\na"
    assert len(taken_out("line\n" * 10_000, "")) < 800


def test_of_a_document_of_which_nothing_is_left_the_sample_is_what_was_read():
    tally = Tally()
    for number in range(2):
        tally.dropped(Place(number, "a", 2), "", {"reason": "c4_no_line"}, read=f"menu {number}")
    told = tally.to_json()
    assert told["sources"]["a"]["dropped"]["c4_no_line"] == {"documents": 2, "bytes": 0}
    assert {each["excerpt"] for each in told["samples"]["dropped"]["c4_no_line"]} == {"menu 0", "menu 1"}


def test_records_without_a_text_are_sampled_one_by_one():
    tally = Tally()
    for number in range(3):
        tally.dropped(Place(number, "a", 0), "", {"reason": "not_utf8", "where": f"a:{number}", "message": "m" * 999})
    samples = tally.to_json()["samples"]["dropped"]["not_utf8"]
    assert {each["document"] for each in samples} == {0, 1, 2}
    assert all(len(each["measured"]["message"]) == 301 for each in samples)


def test_the_origin_of_a_document_is_the_first_folder_or_the_file():
    files = [("b/x/1.txt", 2), ("b/y.txt", 1), ("empty.txt", 0), ("wiki.jsonl", 3), ("é\udcff.txt", 1)]
    documents = FileDocuments([(name, TextDocuments([name] * count)) for name, count in files], None)
    origins = origins_of(documents, "corpus")
    assert [origins.of(number) for number in range(7)] == ["b"] * 3 + ["wiki.jsonl"] * 3 + ["é?.txt"]
    assert origins_of(TextDocuments(["a", "b"]), "pydoc") == Origins([0], ["pydoc"])


def test_of_very_many_origins_the_largest_have_their_names():
    files = [(f"{number:02}.txt", 2 if number % 10 else 1) for number in range(60)]
    origins = origins_of(FileDocuments([(name, TextDocuments(["x"] * n)) for name, n in files], None), "corpus")
    assert len(set(origins.names)) == MOST_ORIGINS + 1
    assert origins.of(0) == OTHERS and origins.of(1) == origins.of(2) == "01.txt"
    assert origins.names.count(OTHERS) == 7 and origins.names[-1] == OTHERS
