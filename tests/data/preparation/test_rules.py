"""Every rule keeps one document and drops another, for its own reason; what a rule measures is counted by hand."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.near.config import NearDuplicatesConfig
from llama_jax.data.preparation.rules import c4, gopher
from llama_jax.data.preparation.rules.config import (
    ContaminationConfig,
    LanguagesConfig,
    PerplexityConfig,
    QualityConfig,
)
from llama_jax.data.preparation.rules.contamination import Evaluations, contamination_report, words_of
from llama_jax.data.preparation.rules.languages import Languages, sample
from llama_jax.data.preparation.rules.making import rule_settings, rules_of
from llama_jax.data.preparation.rules.page import Page, duplicate_fractions
from llama_jax.data.preparation.rules.perplexity import Perplexity
from llama_jax.data.preparation.rules.quality import SETS, rule_names

PROSE = """The mill by the river had been closed for years when Anna came to live with her aunt at the farm nearby.
Nobody in the village could say who owned it, and most of them did not want to talk about that at all.

One evening in spring she took a lamp and went down to have a look at the wheel, which was half under water.
There were swallows under the roof, and a boat that somebody must have repaired only a few weeks before.

She sat on the steps until it grew dark. Who would row across at this hour? Far out a light moved slowly upstream."""


def _words(count: int) -> str:
    return " ".join(f"word{number}" for number in range(count))


def _repeated(n: int, times: int) -> str:
    """A passage of n words that comes again and again among others, so that no shorter limit is met first."""
    passage = " ".join(f"again{number}" for number in range(n))
    return " ".join(f"{passage} {' '.join(f'other{time}x{place}' for place in range(n))}" for time in range(times))


# The rule, and a document that it drops.
DROPPED = {
    "gopher_word_count": _words(49),
    "gopher_mean_word_length": "to be " * 50,
    "gopher_hash_ratio": PROSE + " #" * 20,
    "gopher_ellipsis_ratio": PROSE + " … ..." * 10,
    "gopher_bullet_lines": "\n".join(f"- {line}" for line in PROSE.split("\n")),
    "gopher_ellipsis_lines": PROSE.replace(".\n", " ...\n"),
    "gopher_alphabetic_words": _words(60) + " 17" * 20,
    "gopher_stop_words": _words(60) + " the the",
    "gopher_duplicate_lines": PROSE + "\nIt rained." * 5,
    "gopher_duplicate_paragraphs": PROSE + "\n\nIt rained." * 3,
    "gopher_duplicate_line_characters": PROSE + "\n" + PROSE.split("\n")[0] + "\n" + PROSE.split("\n")[1],
    "gopher_duplicate_paragraph_characters": PROSE + "\n\n" + PROSE.split("\n\n")[0],
    **{f"gopher_top_{n}gram": _repeated(n, 8) for n in (2, 3, 4)},
    **{f"gopher_duplicate_{n}grams": _repeated(n, 2) for n in range(5, 11)},
    "c4_lorem_ipsum": PROSE.replace("village", "Lorem ipsum"),
    "c4_curly_bracket": PROSE.replace("village", "{village}"),
    "c4_sentences": PROSE.split("\n")[0] + "\n" + PROSE.split("\n")[1],
    "c4_bad_words": PROSE + "\nWhat a Fiddle-Faddle that was.",
    # Taken out with every line they have:
    "c4_terminal_punctuation": "no end here\nnor here ...",
    "c4_long_words": "a" * 1001 + " is a word of great length.",
    "c4_short_lines": "Too short a line.\nThis too.",
    "c4_javascript": "Please enable Javascript in your browser.",
    "c4_policies": "By going on you accept our Cookie Policy.",
    "c4_citations": "[1] [citation needed] [edit]",
}


@pytest.mark.parametrize("name", [name for names in SETS.values() for name in names])
def test_every_rule_keeps_a_document_and_drops_another(name, tmp_path):
    (tmp_path / "words").write_text("fiddle faddle\n\n")
    words = str(tmp_path / "words") if name == "c4_bad_words" else None
    (rule,) = pickle.loads(pickle.dumps(rules_of(PrepareConfig(quality=QualityConfig((name,), words)))))

    text, taken_out = rule.edited(PROSE)
    assert (text.split(), taken_out) == (PROSE.split(), {})
    assert rule.judged(text).dropped is None
    text, taken_out = rule.edited(DROPPED[name])
    reason = rule.judged(text).dropped["reason"]
    assert reason == name or (reason == "c4_no_line" and list(taken_out) == [name])


def test_the_sets_keep_the_document_too_and_c4_leaves_its_blank_lines_out():
    rules = rules_of(PrepareConfig(quality=QualityConfig(("gopher", "gopher_repetition", "c4"))))
    text = PROSE + "\nShort.\nThe wheel turned again,[2] and nobody knew of it.[edit]\nNo mark\n"
    for rule in rules:
        text, taken_out = rule.edited(text)
        assert rule.judged(text).dropped is None
    assert taken_out == {"c4_short_lines": 1, "c4_terminal_punctuation": 1, "c4_citations": 2}
    assert text == PROSE.replace("\n\n", "\n") + "\nThe wheel turned again, and nobody knew of it."


def test_the_first_reason_is_told_with_its_number():
    (rule,) = rules_of(PrepareConfig(quality=QualityConfig(("gopher", "gopher_repetition"))))
    assert rule.judged("one two three").dropped == {"reason": "gopher_word_count", "value": 3}
    assert rule.judged("").dropped == {"reason": "gopher_word_count", "value": 0}


def test_bounds_are_kept_within():
    kept = {"gopher_word_count": _words(50), "gopher_stop_words": "The rest of it", "c4_sentences": "a\nb\nc"}
    for name, text in kept.items():
        (rule,) = rules_of(PrepareConfig(quality=QualityConfig((name,))))
        assert rule.judged(text).dropped is None


def test_bad_words_are_whole_words_but_where_there_are_no_spaces():
    listed = c4.BadWords(["Ass", "sweet  talk", "禁句", ""])
    assert listed.first_in("Assess the sweet-talking class.") is None
    assert listed.first_in("An ASS, he said.") == "ass"
    assert listed.first_in("All sweet talk!") == "sweet talk"
    assert listed.first_in("これは禁句です。") == "禁句"


def test_fractions_of_repetition_as_counted_by_hand():
    assert duplicate_fractions(["a", "bb", "a", "a"]) == (0.5, pytest.approx(2 / 5))
    assert duplicate_fractions([]) == (0.0, 0.0)
    # aa bb aa bb cc dd ee: the 2-gram "aa bb" twice, 8 of 14 characters; the second one is the duplicate, 4 of 14.
    fractions = Page("aa bb aa bb cc dd ee").repeated_ngrams
    assert fractions[2] == pytest.approx((8 / 14, 4 / 14))
    assert fractions[3] == (0.0, 0.0)
    # Of five words the 2-grams overlap: all are in the most frequent one, and all but the first word in a duplicate.
    assert Page("x x x x x").repeated_ngrams[2] == (1.0, 0.8)
    assert Page("one").repeated_ngrams[10] == Page("").repeated_ngrams[10] == (0.0, 0.0)


def _slow_fractions(words: list[str], n: int) -> tuple[float, float]:
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    counts = {gram: grams.count(gram) for gram in grams}
    repeated = [gram for gram in grams if counts[gram] > 1]
    if not repeated:
        return 0.0, 0.0
    top = max(repeated, key=lambda gram: (counts[gram], sum(map(len, gram)), -grams.index(gram)))
    in_top, in_duplicate = set(), set()
    for start, gram in enumerate(grams):
        if gram == top:
            in_top.update(range(start, start + n))
        if gram in grams[:start]:
            in_duplicate.update(range(start, start + n))
    total = sum(map(len, words))
    return tuple(sum(len(words[place]) for place in places) / total for places in (in_top, in_duplicate))


def test_fractions_of_ngrams_are_those_of_a_plain_count():
    chosen = np.random.RandomState(0)
    for vocabulary in (1, 2, 5, 30):
        words = [chr(97 + number % 26) * (1 + number % 4) for number in chosen.randint(vocabulary, size=60)]
        fractions = Page(" ".join(words)).repeated_ngrams
        for n in range(2, 11):
            assert fractions[n] == pytest.approx(_slow_fractions(words, n)), (vocabulary, n)


def test_sentences_end_at_marks_before_anything_but_a_small_letter():
    assert c4.sentences(Page('He said "Stop!" and left. "Why?" Nobody knew.\n\nThe end')) == 4


def test_every_constant_is_in_the_documentation():
    import llama_jax.data

    page = (Path(llama_jax.data.__path__[0]) / "README.md").read_text()
    for bound in (*gopher.QUALITY, *gopher.REPETITION, *c4.PAGES):
        (row,) = [line for line in page.split("\n") if line.startswith(f"| `{bound.name}` |")]
        for limit in (bound.least, bound.most):
            assert abs(limit) == np.inf or f"{limit:,}" in row, row
    for name in rule_names(("c4",)):
        assert f"| `{name}` |" in page


SENTENCES = {
    "de": "Am Abend saßen wir noch lange vor dem Haus und sprachen über das Wetter der letzten Tage.",
    "en": "In the evening we sat in front of the house for a long time and talked about the weather.",
    "fr": "Le soir, nous sommes restés longtemps devant la maison et nous avons parlé du temps qu'il faisait.",
    "es": "Por la tarde nos quedamos mucho tiempo delante de la casa y hablamos del tiempo que hacía.",
    "it": "La sera siamo rimasti a lungo davanti alla casa e abbiamo parlato del tempo che faceva.",
    "pt": "À noite ficamos muito tempo em frente da casa e conversamos sobre o tempo que fazia.",
    "nl": "'s Avonds zaten we nog lang voor het huis en praatten we over het weer van de laatste dagen.",
    "sv": "På kvällen satt vi länge framför huset och pratade om vädret de senaste dagarna.",
    "pl": "Wieczorem długo siedzieliśmy przed domem i rozmawialiśmy o pogodzie ostatnich dni.",
    "ru": "Вечером мы долго сидели перед домом и говорили о погоде последних дней.",
    "uk": "Увечері ми довго сиділи перед будинком і говорили про погоду останніх днів.",
    "hu": "Este sokáig ültünk a ház előtt, és az utóbbi napok időjárásáról beszélgettünk.",
    "ja": "夕方、私たちは長い間家の前に座って、この数日の天気について話しました。",
    "ko": "저녁에 우리는 집 앞에 오래 앉아서 지난 며칠 동안의 날씨에 대해 이야기했습니다.",
}


def test_languages_are_told_counted_and_kept():
    pytest.importorskip("py3langid")
    rule = pickle.loads(pickle.dumps(Languages(("de", "ja"), 0.5)))
    for code, text in SENTENCES.items():
        judgement = rule.judged(text)
        assert judgement.tags == {"language": code}
        assert (judgement.dropped is None) == (code in ("de", "ja"))
    assert rule.judged(SENTENCES["fr"]).dropped["reason"] == "language"
    unsure = rule.judged("12 + 34 = 46")
    assert unsure.tags == {"language": "unknown"} and unsure.dropped["reason"] == "language_unsure"
    assert Languages(("all",), 0.5).judged("12 + 34 = 46").dropped is None
    assert Languages(("unknown",), 0.5).judged("12 + 34 = 46").dropped is None


def test_of_a_long_text_the_language_is_judged_at_three_places():
    text = "a" * 1000 + "b" * 1000 + "c" * 1000
    assert sample(text) == "a" * 400 + "\n" + "b" * 400 + "\n" + "c" * 400
    assert sample(text[:1200]) == text[:1200]


class _Length:
    """The number of characters as perplexity."""

    identity = "length"

    def __call__(self, text: str) -> float:
        return float(len(text))


def test_perplexity_is_measured_and_bounded():
    rule = Perplexity(_Length(), least=2.0, most=10.0)
    assert rule.judged("five!").dropped is None and rule.judged("five!").measures == {"perplexity": 5}
    assert rule.judged("x" * 10).dropped is None and rule.judged("xx").dropped is None
    assert rule.judged("x" * 11).dropped == {"reason": "perplexity_high", "value": 11}
    assert rule.judged("x").dropped == {"reason": "perplexity_low", "value": 1}
    assert rule.judged(" ").measures == {}


@pytest.fixture
def exam(tmp_path) -> Path:
    records = [
        {
            "question": PROSE.split("\n")[0],
            "choices": {"text": ["Yes, she did.", "Of a lamp - the brass LAMP, and oil?"]},
        },
        {"question": "What is it?", "choices": {"text": ["this", "that"]}},
        {"question": " ".join(f"q{number}" for number in range(13)), "choices": {"text": ["no"]}},
    ]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _contamination(exam: Path, **settings):
    (rule,) = rules_of(PrepareConfig(contamination=ContaminationConfig((str(exam),), **settings)))
    return pickle.loads(pickle.dumps(rule))


def test_contamination_finds_words_in_a_row_and_whole_short_texts(exam):
    rule = _contamination(exam, action="drop")
    found = rule.judged(PROSE.upper().replace(" ", ", ")).found
    assert found == [{"file": str(exam), "record": f"{exam}:1", "ngram": " ".join(words_of(PROSE)[:13])}]
    assert (
        rule.judged("Some oil, of a lamp. The brass lamp and oil!").dropped["ngram"]
        == "of a lamp the brass lamp and oil"
    )
    assert rule.judged(" ".join(f"q{number}" for number in range(13))).found[0]["record"] == f"{exam}:3"
    kept = (" ".join(words_of(PROSE)[:12]), " ".join(f"q{number}" for number in range(12)), "What is it? this", "")
    assert all(rule.judged(text) == ((None, {}, {}, ())) for text in kept)
    assert _contamination(exam).judged(PROSE).dropped is None
    assert _contamination(exam, fields=("choices",)).judged(PROSE).found == ()


def test_the_report_says_how_many_records_are_touched(exam):
    found = [{"document": number, **each} for number in (3, 7) for each in _contamination(exam).judged(PROSE).found]
    assert contamination_report(found, (str(exam),), (), 13) == {
        str(exam): {"records": 3, "touched": 1, "too_short": 1, "documents": 2}
    }


def test_equal_hashes_alone_are_no_overlap(monkeypatch):
    module = "llama_jax.data.preparation.rules.contamination._hashes"
    monkeypatch.setattr(module, lambda ids, length: np.zeros(len(ids) - length + 1, np.uint64))
    evaluations = Evaluations([("exam", "1", ["a b c d"]), ("exam", "2", ["c d e"])], 3)
    assert [overlap.record for overlap in evaluations.overlaps("b c d b c d")] == ["1"]
    assert [overlap.record for overlap in evaluations.overlaps("a c d e")] == ["2"]
    assert list(evaluations.overlaps("a b d")) == []


def test_a_change_of_what_the_rules_ask_changes_the_settings(exam):
    config = PrepareConfig(contamination=ContaminationConfig((str(exam),)), quality=QualityConfig(("gopher",)))
    assert rule_settings(PrepareConfig()) == {}
    before = rule_settings(config)
    assert before == json.loads(json.dumps(before)) and set(before) == {"quality", "contamination"}
    exam.write_text(exam.read_text() + '{"question": "one more"}\n')
    assert rule_settings(config)["contamination"] != before["contamination"]


def _unused(name: str, switch: str) -> str:
    return f"--{name}: does nothing without --{name.partition('.')[0]}.{switch}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QualityConfig(("gohper",)), "--quality.rules gohper: no such rule; did you mean 'gopher'?"),
        (lambda: QualityConfig(("c4_bad_words",)), "--quality.rules c4_bad_words: needs --quality.bad_words FILE"),
        (lambda: QualityConfig(("gopher",), "x"), "--quality.bad_words x: only the rule c4_bad_words asks for it"),
        (lambda: QualityConfig(("c4",), "absent"), "--quality.bad_words absent: no such file"),
        (lambda: LanguagesConfig(("english",)), "--languages.keep english: no language that can be told"),
        (lambda: LanguagesConfig(("all", "en")), "`all` stands alone"),
        (lambda: LanguagesConfig(threshold=float("nan")), "--languages.threshold nan: is a probability"),
        (lambda: PrepareConfig(perplexity=PerplexityConfig(most=5.0)), _unused("perplexity.most", "model")),
        (lambda: PrepareConfig(perplexity=PerplexityConfig(tokens=9)), _unused("perplexity.tokens", "model")),
        (
            lambda: PrepareConfig("corpus/out", data=DataConfig(source="corpus")),
            "--output corpus/out: lies within data.source corpus",
        ),
        (lambda: PrepareConfig(languages=LanguagesConfig(threshold=0.9)), _unused("languages.threshold", "keep")),
        (lambda: PrepareConfig(contamination=ContaminationConfig(ngram=8)), _unused("contamination.ngram", "files")),
        (
            lambda: PrepareConfig(near_duplicates=NearDuplicatesConfig(rows=4)),
            _unused("near_duplicates.rows", "threshold"),
        ),
        (lambda: PerplexityConfig("m", most=float("nan")), "--perplexity.most nan: must be a number of at least 1"),
        (lambda: PerplexityConfig("m", most=2.0, least=3.0), "--perplexity.most 2.0: is below --perplexity.least 3.0"),
        (lambda: PerplexityConfig("m", tokens=1), "--perplexity.tokens 1: must be at least 2"),
        (lambda: ContaminationConfig(("f",), ngram=0), "--contamination.ngram 0: must be at least 1"),
        (
            lambda: rule_settings(PrepareConfig(contamination=ContaminationConfig(("absent.jsonl",)))),
            "--contamination.files: no file or directory absent.jsonl",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(make, message):
    if "languages" in message or "stands alone" in message:
        pytest.importorskip("py3langid")
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"a\n\xff", "not UTF-8 at byte 2"), (b"\xef\xbb\xbf \n", "holds no word")]
)
def test_a_list_of_bad_words_that_is_none_is_refused(content, message, tmp_path):
    (tmp_path / "words").write_bytes(content)
    config = PrepareConfig(quality=QualityConfig(("c4",), str(tmp_path / "words")))
    with pytest.raises(UserError, match=f"^--quality.bad_words .*words: {message}$"):
        rule_settings(config)


def test_an_evaluation_with_a_broken_record_is_refused_in_words_that_name_no_setting(exam):
    exam.write_text(exam.read_text() + "[]\n")
    with pytest.raises(UserError, match=r"^1 of \d records of .*exam.jsonl cannot be used .*; repair the source$"):
        _contamination(exam).judged("a")


def test_a_field_that_no_record_has_is_refused(exam):
    with pytest.raises(UserError, match=r"fields qestion: no record of .* has it; did you mean 'question'\?"):
        _contamination(exam, fields=("qestion",)).judged("a")
