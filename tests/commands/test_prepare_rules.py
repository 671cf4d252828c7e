"""`prepare` with rules: what it keeps does not depend on workers, and a resume with other rules is refused."""

import json
import pickle
import random

import command_runs
import pytest
from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.data.preparation.rules.perplexity import Perplexity
from llama_jax.data.sources.prepared import open_prepared
from llama_jax.data.tokenizers import load_tokenizer
from llama_jax.evals.perplexity import DocumentPerplexity

ENGLISH = (
    "This method returns a copy of the list in which the items are sorted. If the argument is not given, the default "
    "is used, and the function returns the same object. " * 6
)
NO_LANGUAGE = "".join(random.Random(0).sample(ENGLISH, len(ENGLISH)))
OWN = [" ".join(f"{word}{number}" for word in ENGLISH.split()[:14]) for number in range(8)]
"""Words of each document that no other has."""


def test_text_has_a_lower_perplexity_than_its_shuffled_letters(tiny_run):
    measure = DocumentPerplexity(str(tiny_run), tokens=47)
    english, shuffled = measure(ENGLISH), measure(NO_LANGUAGE)
    assert 1 < english < 0.97 * shuffled  # of a model that has learnt little
    rule = pickle.loads(pickle.dumps(Perplexity(measure, least=None, most=(english + shuffled) / 2)))
    assert rule.judged(ENGLISH).dropped is None
    assert rule.judged(NO_LANGUAGE).dropped == {"reason": "perplexity_high", "value": float(f"{shuffled:.4g}")}
    assert measure(ENGLISH) == measure(ENGLISH + " And what comes after the first tokens.")


def test_a_model_that_has_changed_since_is_refused(tiny_run, monkeypatch):
    measure = DocumentPerplexity(str(tiny_run), tokens=47)
    measure.identity = "another"
    with pytest.raises(UserError, match=r"--perplexity.model .*: has changed since the work began"):
        measure(ENGLISH)
    with pytest.raises(UserError, match=r"^--perplexity.model absent: no such file or directory"):
        DocumentPerplexity("absent", tokens=47)


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[object]:
    """`prepare` with rules of all kinds on a few documents, without the output directory."""
    folder = tmp_path_factory.mktemp("rules")
    texts = [NO_LANGUAGE, "{ a; b; }.", *(f"No mark\n{ENGLISH}\n{words}." for words in OWN)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "exam.jsonl").write_text(json.dumps({"question": OWN[3].upper(), "answer": "no"}) + "\n")
    rules = "[gopher_word_count,gopher_stop_words,c4_terminal_punctuation,c4_curly_bracket]"
    return [
        *("--data.source", folder / "corpus.jsonl", "--vocab_size", 400, "--shard_megabytes", 0.004),
        *("--quality.rules", rules, "--contamination.files", f"[{folder / 'exam.jsonl'}]"),
        *("--contamination.action", "drop"),
    ]


def test_documents_are_kept_edited_and_dropped_for_a_reason(command, tmp_path, capfd):
    output = tmp_path / "prepared"
    command = (*command, "--output", output, "--workers", 0)
    assert command_runs.call("prepare", *command) == 0
    printed = capfd.readouterr().out
    assert "exam.jsonl: 1 of 1 records share words with 1 documents; see found.jsonl" in printed
    dropped = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    reasons = [(each["document"], each["reason"]) for each in dropped]
    assert reasons == [(0, "gopher_stop_words"), (1, "gopher_word_count"), (5, "contamination")]
    (found,) = map(json.loads, (output / "found.jsonl").read_text().splitlines())
    assert {**found, "reason": "contamination"} == dropped[2]
    documents = open_prepared(epath.Path(output))
    tokenizer = load_tokenizer(str(output))
    assert tokenizer.decode(documents[0].tolist()) == f"{ENGLISH}\n{OWN[0]}."

    assert command_runs.call("prepare", *command, "--quality.rules", "[]") == 2
    assert "quality was {" in (error := capfd.readouterr().err) and "is null now" in error


@pytest.mark.slow
def test_what_is_written_does_not_depend_on_workers(command, tiny_run, tmp_path):
    pytest.importorskip("py3langid")
    measured = (*command, "--perplexity.model", tiny_run, "--perplexity.tokens", 64, "--languages.keep", "[all]")
    written = []
    for workers in (0, 2):
        output = tmp_path / str(workers)
        assert command_runs.call("prepare", *measured, "--output", output, "--workers", workers) == 0
        written.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert written[0] == written[1] and len(written[0]) > 4
