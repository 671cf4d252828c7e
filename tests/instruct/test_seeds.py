"""The seed tasks that come with the package, and those of a user."""

import json
from collections import Counter

import pytest

from llama_jax.core.errors import UserError
from llama_jax.core.similarity import SimilarityIndex
from llama_jax.instruct.config import FilterConfig
from llama_jax.instruct.filters import InstructionFilter, kept_instances
from llama_jax.instruct.languages import language
from llama_jax.instruct.report.verbs import verb_and_noun
from llama_jax.instruct.tasks import Instance, Task, read_seeds

SEEDS = read_seeds("english")


def test_there_are_as_many_as_in_the_paper_and_as_varied() -> None:
    assert len(SEEDS) == 175
    assert sum(seed.is_classification for seed in SEEDS) == 25
    assert sum(bool(seed.instances[0].input) for seed in SEEDS) == 86
    pairs = Counter(pair for seed in SEEDS if (pair := verb_and_noun(seed.instruction)) is not None)
    assert max(pairs.values()) <= 5
    assert len(pairs) > 100


@pytest.mark.parametrize("name", ["english", "chinese"])
def test_no_two_are_alike_and_each_would_pass_its_own_filters(name: str) -> None:
    seeds = read_seeds(name)
    told = language("any")
    rules, index = InstructionFilter(FilterConfig(), told, "alpaca"), SimilarityIndex(told.words)
    for seed in seeds:
        assert all(similar.score < 0.7 for similar in index.most_similar(seed.instruction)), seed.instruction
        assert rules.reason(seed.instruction) is None, seed.instruction
        assert kept_instances(seed.instances) == (seed.instances, {}), seed.instruction
        index.add(seed.instruction)


def test_classification_seeds_have_one_of_few_labels() -> None:
    for seed in SEEDS:
        if seed.is_classification:
            assert all(len(instance.output.split()) <= 4 for instance in seed.instances), seed.instruction
            assert len(seed.instances) >= 2


def test_a_file_of_ones_own_in_either_format(tmp_path) -> None:
    file = tmp_path / "mine.jsonl"
    published = {"instruction": "Sort.", "instances": [{"input": "b a", "output": "a b"}], "is_classification": True}
    alpaca = {"instruction": "Greet.", "input": "", "output": "Hello."}
    file.write_text("".join(json.dumps(record) + "\n" for record in (published, alpaca)))
    expected = [Task("Sort.", (Instance("b a", "a b"),), True), Task("Greet.", (Instance("", "Hello."),))]
    assert read_seeds(str(file)) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instances": [{"input": "", "output": "x"}]}, "instruction"),
        ({"instruction": "Sort.", "instances": []}, "must be a list of objects"),
        ({"instruction": "Sort.", "instances": [{"input": 3, "output": "x"}]}, "'input' must be text"),
        ({"instruction": "Sort.", "output": ""}, "output"),
        ({"instruction": "Sort.", "output": "x", "is_classification": "yes"}, "must be true or false"),
    ],
)
def test_a_record_that_is_no_task_is_named(tmp_path, record: dict, message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="--seed_tasks") as error:
        read_seeds(str(file))
    assert message in str(error.value)
    assert "mine.jsonl:1" in str(error.value)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Write a short, polite email to my landlord.", ("write", "email")),
        ("Given the sides of a triangle, find out its area.", ("find", "area")),
        ("Give me three examples of verbs.", ("give", "example")),
        ("Can you summarize the following stories for me?", ("summarize", "story")),
        ("Why is the sky blue?", None),
        ("Explain what a comet is.", None),
        ("请写一首关于春天的诗。", ("写", "诗")),
        ("列出三种水果", ("列出", "水果")),
        ("天空为什么是蓝的？", None),
    ],
)
def test_verb_and_noun(instruction: str, expected: tuple[str, str] | None) -> None:
    assert verb_and_noun(instruction) == expected
