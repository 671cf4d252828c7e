"""Records become prompts, and answers become numbers, as the published tasks have them."""

import math
import re

import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.record_text import Record
from llama_jax.evals.exact_match import problem_sample, read_problem
from llama_jax.evals.instructions import instruction_sample, load_judge, read_instructions
from llama_jax.evals.last_word import passage_metrics, passage_sample, read_passage
from llama_jax.evals.scoring import Score
from llama_jax.evals.tasks import AnsweredTask, Choices, few_shot_prefix, means, read_documents


def test_the_last_word_is_cut_off_with_its_space() -> None:
    (document,) = read_passage({"text": 'She said:\n"It was  Gabriel." \n'}, "text")
    assert document == Choices('She said:\n"It was', ('  Gabriel."',), 0)
    assert read_passage({"text": "alone"}, "text") == []


def test_perplexity_of_the_last_word_is_over_passages() -> None:
    document = Choices("It was", (" Gabriel",), 0)
    samples = [passage_sample(document, [Score(-n * math.log(2), 3, n == 1, False)]) for n in (1, 3)]
    found = passage_metrics(samples)
    assert found["accuracy"] == 0.5
    assert found["perplexity"] == pytest.approx(4.0)  # exp of the mean of log 2 and 3 log 2
    # Standard error of the mean: log 2 sqrt(2) / sqrt(2); of the exponential: times 4.
    assert found["perplexity_stderr"] == pytest.approx(4 * math.log(2))


ANSWERS = {
    "6 * 7 = 42\n#### 42": (1, 1),
    "#### 42. So it is, of 100": (1, 0),
    "The answer is $42.": (0, 1),
    "#### 41\nno, 42": (0, 1),
    "#### 1,042": (0, 0),
    "": (0, 0),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_numbers_are_found_as_the_harness_finds_them(answer) -> None:
    (document,) = read_problem({"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"})
    assert document.prompt == "Question: 6 * 7?\nAnswer:"
    sample = problem_sample(document, answer)
    assert (sample["exact_match"], sample["exact_match_flexible"]) == ANSWERS[answer]


def test_thousands_may_have_commas() -> None:
    (document,) = read_problem({"question": "?", "answer": "#### 1,042"})
    assert problem_sample(document, "It costs $1042.")["exact_match_flexible"] == 1


def test_examples_come_before_the_prompt_with_their_answers() -> None:
    problem = read_problem({"question": "1 + 1?", "answer": "2\n#### 2"})
    choices = [Choices("Question: hot?\nAnswer:", (" ice", " sun"), 1)]
    assert few_shot_prefix(problem) == "Question: 1 + 1?\nAnswer: 2\n#### 2\n\n"
    assert few_shot_prefix(choices) == "Question: hot?\nAnswer: sun\n\n"


def test_instructions_are_put_as_alpaca_puts_them() -> None:
    alpaca = {"instruction": "Add.", "input": "{1} + 1", "output": "2"}
    (question,) = read_instructions(alpaca, chat=False)
    assert question.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n{1} + 1\n\n"
        "### Response:"
    )
    self_instruct = {"id": "user_0", "instruction": "Sing.", "instances": [{"input": "", "output": "La"}] * 2}
    questions = read_instructions(self_instruct, chat=False)
    assert len(questions) == 2
    assert questions[0].reference == "La"
    assert questions[0].prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing.\n\n### Response:"
    )
    assert [read_instructions(r, chat=True)[0].prompt for r in (alpaca, self_instruct)] == ["Add.\n\n{1} + 1", "Sing."]


def test_a_judge_grades_each_answer() -> None:
    (question,) = read_instructions({"instruction": "Add.", "input": "1 + 1", "output": "It is 2"}, chat=False)
    asked = []
    sample = instruction_sample(question, " 2\n", lambda *parts: asked.append(parts) or 7)
    assert asked == [("Add.", "1 + 1", "It is 2", "2")]
    assert sample["answer"] == "2"
    assert means([sample], ("rouge_l", "judge")) == {
        "rouge_l": pytest.approx(2 / 4),
        "rouge_l_stderr": 0.0,
        "judge": 7.0,
        "judge_stderr": 0.0,
    }
    with pytest.raises(UserError, match="gave nan for an answer; it must give a finite number"):
        instruction_sample(question, "2", lambda *parts: math.nan)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "write package.module:function"),
        ("no_such_module:grade", "No module named 'no_such_module'"),
        ("math:sqroot", "math has no such function; did you mean 'sqrt'"),
        ("math:pi", "math has no such function"),
    ],
)
def test_a_judge_that_is_not_there_is_named(name, said) -> None:
    with pytest.raises(UserError, match=re.escape(f"--judge {name}: {said}")):
        load_judge(name)
    assert load_judge("math:hypot") is math.hypot


def test_a_mistake_in_a_record_is_told_with_its_place() -> None:
    task = AnsweredTask(read_problem, problem_sample, lambda samples: {})
    records = [Record("f.jsonl:1", {"question": "?", "answer": "#### 1"}), Record("f.jsonl:2", {"question": "?"})]
    bad = BadRecords("f.jsonl", "skip", 0.5)
    documents, skipped = read_documents(records, task, bad)
    assert ([document.reference for document in documents], skipped) == (["#### 1"], 0)
    assert bad.reasons == {"wrong_form": 1}
    with pytest.raises(UserError, match=r"^data.max_bad_fraction: 1 of 2 .*f\.jsonl:2: no field 'answer'; it"):
        read_documents(records, task, BadRecords("f.jsonl", "skip", 0.4))
