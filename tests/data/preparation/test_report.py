"""The report of a preparation: its numbers are those of the tally, and nothing that a document holds becomes markup."""

import json

import pytest
from etils import epath
from page_tags import Tags
from searching import searched

from llama_jax.core.recording.pages import visible
from llama_jax.data.preparation.reading import Edit, examined
from llama_jax.data.preparation.report import counting
from llama_jax.data.preparation.report.asked import Asked
from llama_jax.data.preparation.report.counting import ShardTally
from llama_jax.data.preparation.report.distribution import distribution_svg, quantile
from llama_jax.data.preparation.report.funnel import Amount, funnel_lines, funnel_of, in_bytes
from llama_jax.data.preparation.report.tally import Place, Tally
from llama_jax.data.preparation.report.writing import write_report
from llama_jax.data.sources.prepared import PAGE, REPORT

HOSTILE = '</pre><script>alert("x")</script><img src=x onerror=alert(1)> \u202e\x1b[31m' + "x" * 500
OVERLAPS = {"records": 1319, "touched": 3, "too_short": 2, "documents": 7}


@pytest.fixture
def tally() -> Tally:
    """Ten documents of two sources, of which four are kept."""
    tally = Tally()
    for number in range(10):
        source, text = "web<b>" if number % 2 else "books", HOSTILE if number < 5 else "a text of ten"
        tally.read(place := Place(number, source, 1), "" if number == 9 else text)
        if number == 9:
            why = {"reason": "not_utf8", "where": "a:9", "message": HOSTILE}
            tally.dropped(place._replace(step=0), "", why)
            continue
        tally.tagged(place, text, {"language": "de"}, is_dropped=number == 8)
        tally.measured({"perplexity": 10.0 ** (number % 3)})
        if number == 8:
            tally.dropped(place, text, {"reason": "language", "language": "de", "score": 0.25})
            continue
        kept = text[3:]
        tally.edited(place._replace(step=2), Edit("c4", {"javascript": 2}, text, kept, 2))
        if number < 4:
            tally.dropped(place._replace(step=2), kept, {"reason": "c4_braces", "value": "script alert"})
        else:
            tally.kept(place, kept)
    return tally


def test_the_funnel_is_the_tally_in_the_order_of_the_steps(tally):
    funnel = funnel_of(json.loads(json.dumps(tally.to_json())))
    size = len(HOSTILE.encode())
    assert funnel.read == Amount(10, 5 * size + 4 * 13)
    assert [(step.name, step.is_edit, step.taken.documents) for step in funnel.steps] == [
        ("not_utf8", False, 1),
        ("language", False, 1),
        ("c4", True, 0),
        ("c4_braces", False, 4),
    ]
    assert funnel.steps[2].taken.bytes == 24
    assert funnel.steps[-1].left == funnel.kept == Amount(4, size - 3 + 3 * 10)
    assert funnel.steps[3].by_source == {"books": Amount(2, 2 * size - 6), "web<b>": Amount(2, 2 * size - 6)}


def test_names_of_sources_cannot_break_the_table_of_a_terminal():
    tally = Tally()
    for number, name in enumerate(("a\nb", "\x1b[2J")):
        tally.kept(Place(number, name, 1), "text")
        tally.read(Place(number, name, 1), "text")
    assert funnel_lines(funnel_of(tally.to_json()))[0].split() == ["documents", "text", "⟨001B⟩[2J", "a", "b"]


def test_the_funnel_is_told_with_a_column_for_each_source(tally):
    lines = funnel_lines(funnel_of(tally.to_json()))
    assert [line.split() for line in lines] == [
        ["documents", "text", "books", "web<b>"],
        ["read", "10", "2.9", "kB", "5", "5"],
        ["-", "not", "utf8", "1", "0", "B", "0", "1"],
        ["-", "language", "1", "13", "B", "1", "0"],
        ["-", "c4:", "lines", "0", "24", "B", "0", "0"],
        ["-", "c4", "braces", "4", "2.3", "kB", "2", "2"],
        ["kept", "4", "597", "B", "2", "2"],
    ]
    assert [in_bytes(size) for size in (0, 999, 1000, 99_949, 99_950, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "99.9 kB",
        "100 kB",
        "5.0 TB",
    ]


def test_what_a_document_holds_stays_text_and_nothing_is_fetched(tally, tmp_path):
    asked = Asked("corpus <i>", {"perplexity": [50.0]}, {"gsm8k<i>.jsonl": OVERLAPS}, ["Whether it is true."])
    write_report(epath.Path(tmp_path), asked, tally)
    page = (tmp_path / PAGE).read_text()
    found = Tags(page)
    assert not found.tags & {"script", "img", "link", "iframe", "object", "i>"}
    assert all(str(address).startswith("#step-") for address in found.addresses)
    assert "://" not in page and "url(" not in page and "@import" not in page
    assert "\u202e" not in page and "\x1b" not in page and "⟨202E⟩⟨001B⟩[31m" in found.text
    # Once as what was dropped (four times), in a message, as a line that was taken out, and as what was kept.
    assert found.text.count('<script>alert("x")</script>') == 4
    assert "web<b>" in found.text and "corpus <i>" in found.text
    assert "gsm8k<i>.jsonl" in found.text and "1,319" in found.text
    assert "40.0 % of the documents" in found.text and "Whether it is true." in found.text


def test_the_report_is_the_same_from_tallies_of_any_cut(tally, tmp_path):
    for name, tallies in (("a", [tally]), ("b", [Tally(), Tally.from_json(tally.to_json())])):
        (tmp_path / name).mkdir()
        write_report(epath.Path(tmp_path) / name, Asked("corpus", {}, {"gsm8k": OVERLAPS}, []), Tally.merged(tallies))
    for name in (REPORT, PAGE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    values = json.loads((tmp_path / "a" / REPORT).read_bytes())
    assert values["funnel"]["kept"]["documents"] == 4 and values["overlaps"] == {"gsm8k": OVERLAPS}


def test_a_corpus_of_which_all_is_kept_has_a_report(tmp_path):
    tally = Tally()
    tally.read(place := Place(0, "a", 0), "text")
    tally.kept(place, "text")
    write_report(epath.Path(tmp_path), Asked("a", {}, {"gsm8k": OVERLAPS}, []), tally)
    assert "100.0 % of the documents" in (tmp_path / PAGE).read_text()


def test_a_distribution_is_drawn_to_its_bounds():
    bins = {"0": 5, "1": 10, "100": 20, "1000": 1}
    assert [quantile(bins, share) for share in (0.1, 0.5, 1.0)] == [0.0, 100.0, 1000.0]
    svg = distribution_svg("words", bins, [50.0, 100000.0])
    assert svg.count('class="column"') == 4 and svg.count('class="bound"') == 2 and ">100,000<" in svg
    assert ">0.01<" in distribution_svg("x", {"0": 3, "0.01": 1}, [0.0])


def test_characters_that_one_cannot_see_are_shown_by_number():
    assert visible("a\tb\nc\r\0\x85\u2066") == "a\tb\nc⟨000D⟩⟨0000⟩⟨0085⟩⟨2066⟩"
    assert visible("می‌شود 👩‍🚀") == "می‌شود 👩‍🚀"


def test_the_tallies_of_very_many_shards_are_summed_in_groups(tmp_path, byte_tokenizer, monkeypatch):
    job = searched(tmp_path, byte_tokenizer, [f"text {number}" for number in range(10)], 5)
    for shard in range(5):
        tally = ShardTally(job, shard, is_first=True, is_last=True)
        for each in examined(job, shard, lambda *_: None):
            tally.add(each)
        tally.write()
    whole = counting.tally_of(job).to_json()
    assert whole["sources"]["texts"]["kept"] == {"documents": 10, "bytes": 60}
    assert list(counting.summing_passes(job)) == []
    monkeypatch.setattr(counting, "_AT_ONCE", 2)
    (task,) = counting.summing_passes(job)
    for number in task.missing():
        task.work(job, number, lambda *_: None)
    assert len(task.amounts) == 3 and not task.missing()
    assert counting.tally_of(job).to_json() == whole
