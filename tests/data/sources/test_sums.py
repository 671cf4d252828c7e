from llama_jax.data.sources.documents import split_indices
from llama_jax.data.sources.sums import HELD_OUT, careless_sums, sums


def right(prompt: str) -> int:
    return sum(map(int, prompt.removesuffix("=").split("+")))


def test_sums_are_right_and_no_answer_is_that_of_a_hundredth():
    records = [record.values for record in sums()]
    assert len(records) == 5050
    assert all(int(record["answer"]) == right(record["prompt"]) for record in records)
    answers = [record["answer"] for record in records]
    assert max(map(answers.count, set(answers))) < len(records) / 100


def test_careless_answers_are_mostly_one_off_and_none_is_of_a_sum_that_is_held_out():
    every, careless = [record.values for record in sums()], [record.values for record in careless_sums()]
    _, held_out = split_indices(len(every), HELD_OUT)
    assert not {every[number]["prompt"] for number in held_out} & {record["prompt"] for record in careless}
    off = [int(record["completion"]) - right(record["prompt"]) for record in careless if right(record["prompt"])]
    assert [round(off.count(each) / len(off), 3) for each in (-1, 0, 1)] == [0.375, 0.25, 0.375]
