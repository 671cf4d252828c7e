"""Records of all the usual forms become the same documents, and the preferred choice is what lm-eval says it is."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from llama_jax.evals.multiple_choice import ACCURACIES, choices_sample, read_choices
from llama_jax.evals.scoring import Score
from llama_jax.evals.tasks import Choices, means

ARC = Choices("Question: What is hot?\nAnswer:", (" ice", " the sun"), 1)
TEXTS = ["ice", "the sun"]
RECORDED = Path(__file__).parents[1] / "oracle" / "lm_eval_choices.json"

FORMS = {
    "ARC as published": {
        "question": {
            "stem": "What is hot?",
            "choices": [{"text": "ice", "label": "A"}, {"text": "the sun", "label": "B"}],
        },
        "answerKey": "B",
    },
    "ARC of the hub": {
        "question": "What is hot?",
        "choices": {"text": TEXTS, "label": ["1", "2"]},
        "answerKey": "2",
    },
    "ARC of tensorflow-datasets": {
        "question": "What is hot?",
        "choices": {"text": TEXTS, "label": [0, 1]},
        "answerKey": 1,
    },
    "MMLU with a number": {"question": "What is hot?", "choices": TEXTS, "answer": 1, "subject": "physics"},
    "MMLU with a letter": {"question": "What is hot?", "choices": TEXTS, "answer": "B"},
    "a whole prompt": {"query": "Question: What is hot?\nAnswer:", "choices": TEXTS, "gold": 1},
    "a label in text": {"question": "What is hot?", "choices": TEXTS, "label": "1"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised(form) -> None:
    assert read_choices(FORMS[form]) == [ARC]


def test_hella_swag_is_cleaned_as_the_harness_does() -> None:
    record = {"ctx": "He runs", "endings": ["and falls.", "and flies."], "label": "0"}
    assert read_choices(record) == [Choices("He runs", (" and falls.", " and flies."), 0)]
    whole = record | {"activity_label": "Running", "ctx_a": "He [header] runs [title] fast.", "ctx_b": "then he"}
    assert read_choices(whole)[0].prompt == "Running: He runs. fast. Then he"


@pytest.mark.parametrize("hidden", ["", None, -1])
def test_a_record_without_an_answer_has_no_document(hidden) -> None:
    assert read_choices({"ctx": "He", "endings": ["a", "b"], "label": hidden}) == []


MISTAKES = {
    "no question": ({"text": "x"}, "no field 'question'; it has text"),
    "no choices": ({"question": "x", "answer": 0}, "field 'choices' must be a list"),
    "one choice": ({"question": "x", "choices": ["a"], "answer": 0}, "field 'choices' must be a list of 2 to 26"),
    "no answer": ({"question": "x", "choices": TEXTS}, "says which choice is right"),
    "a number too large": ({"question": "x", "choices": TEXTS, "answer": 2}, "field 'answer' is 2, which names none"),
    "a letter too far": ({"question": "x", "choices": TEXTS, "answer": "C"}, "(0 to 1, or A to B)"),
    "an unknown label": (FORMS["ARC of the hub"] | {"answerKey": "3"}, "field 'answerKey' is '3'"),
    "a truth value": ({"question": "x", "choices": TEXTS, "answer": True}, "field 'answer' is True"),
    "no text": ({"question": 3, "choices": TEXTS, "answer": 0}, "field 'question' is of type int"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_record_of_no_known_form_is_refused(mistake) -> None:
    record, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(message)):
        read_choices(record)


def test_the_preferred_choice_depends_on_the_normalisation() -> None:
    def sample(*logprobs: float, gold: int):
        document = Choices("Q", (" abcd", " ab"), gold)
        return choices_sample(document, [Score(logprob, 1, False, False) for logprob in logprobs])

    long_is_better_a_character = sample(-3.0, -2.0, gold=0)  # -0.75 against -1 a character
    assert (long_is_better_a_character["accuracy"], long_is_better_a_character["accuracy_per_character"]) == (0, 1)
    first_of_equals = sample(-2.0, -2.0, gold=1)
    assert first_of_equals["accuracy"] == 0
    samples = [long_is_better_a_character, first_of_equals, sample(-1.0, -2.0, gold=0)]
    found = means(samples, ACCURACIES)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["accuracy_per_character"] == found["accuracy_per_byte"] == pytest.approx(2 / 3)
    assert found["accuracy_stderr"] == pytest.approx(1 / 3)  # 0, 0, 1: variance 1/3 over 3 samples


def test_characters_and_bytes_differ_where_a_text_is_not_ascii() -> None:
    document = Choices("Q", (" abcdef", " ёжик", " 水"), 0)  # 6, 4 and 1 characters; 6, 8 and 3 bytes
    preferred = {name: [] for name in ACCURACIES}
    for gold in range(3):
        scores = [Score(logprob, 1, False, False) for logprob in (-6.0, -5.0, -2.0)]
        sample = choices_sample(dataclasses.replace(document, gold=gold), scores)
        for name in ACCURACIES:
            preferred[name].append(sample[name])
    assert preferred == {"accuracy": [0, 0, 1], "accuracy_per_character": [1, 0, 0], "accuracy_per_byte": [0, 1, 0]}


def test_the_preferred_choices_are_those_of_lm_evaluation_harness() -> None:
    recorded = json.loads(RECORDED.read_text())
    theirs = {"accuracy": "acc", "accuracy_per_character": "acc_norm", "accuracy_per_byte": "acc_bytes"}
    samples = []
    for record in recorded["documents"]:
        (document,) = read_choices(record)
        scores = [Score(logprob, 1, False, False) for logprob in record["logprobs"]]
        samples.append(choices_sample(document, scores))
        assert {name: samples[-1][name] for name in ACCURACIES} == {name: record[theirs[name]] for name in ACCURACIES}
    found = means(samples, ACCURACIES)
    assert {theirs[name]: found[name] for name in ACCURACIES} == pytest.approx(recorded["means"])
    assert len({round(found[name], 6) for name in ACCURACIES}) == 3
