"""What models write, taken apart: of each rule a text that it takes and one that it does not."""

import pytest

from llama_jax.instruct.parsing import (
    alpaca_tasks,
    input_first_instances,
    numbered_instructions,
    output_first_instances,
    says_yes,
)
from llama_jax.instruct.tasks import Instance, Task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Name a river.\n10. Spell it\n  backwards:\n11. \n", ["Name a river.", "Spell it backwards"]),
        ("9. Name a river.\n10. Spell it.", ["Name a river.", "Spell it."]),
        ("\n9 . Name a river.", ["Name a river."]),
        ("**9.** Name a river.\n**10.** Spell it.", ["Name a river.", "Spell it."]),
        (" It costs 3.50, not 4.\n10. Next", ["It costs 3.50, not 4.", "Next"]),
        ("写一首诗。\n10. 列出三种水果\n11、解释彩虹", ["写一首诗。", "列出三种水果", "解释彩虹"]),
        ("", []),
    ],
)
def test_numbered_instructions(text: str, expected: list[str]) -> None:
    assert numbered_instructions(text, 9, was_cut=False) == expected
    assert numbered_instructions(text, 9, was_cut=True) == []


@pytest.mark.parametrize("text", [" Yes", "yes", "YES\nTask: more", "Yes.", "Yes, it", "是", "是。", "是的，"])
def test_yes(text: str) -> None:
    assert says_yes(text)


@pytest.mark.parametrize("text", ["No", "", "Yesterday", "否", "不是", "是否", "yEs"])
def test_everything_else_is_no(text: str) -> None:
    assert not says_yes(text)


def test_input_first() -> None:
    text = "Example 1\nInput: 2 + 2\nOutput: 4\nExample 2\nInput:\n3 + 3\nOutput:\n6\n"
    assert input_first_instances(text, was_cut=False) == [Instance("2 + 2", "4"), Instance("3 + 3", "6")]
    assert input_first_instances(text, was_cut=True) == [Instance("2 + 2", "4")]
    assert input_first_instances("Output: It is blue.", was_cut=False) == [Instance("", "It is blue.")]
    assert input_first_instances("It is blue.", was_cut=False) == [Instance("", "It is blue.")]
    assert input_first_instances("Example 1\nSentence: a cat\nOutput: noun", was_cut=False) == [
        Instance("Sentence: a cat", "noun")
    ]
    assert input_first_instances("Input: None\nOutput: x", was_cut=False) == [Instance("", "x")]
    assert input_first_instances("示例 1\n输入：\n2 + 2\n输出：\n4\n示例 2\n输出：5", was_cut=False) == [
        Instance("2 + 2", "4"),
        Instance("", "5"),
    ]
    assert input_first_instances("  ", was_cut=False) == []


def test_output_first() -> None:
    text = "Class label: good\nSentence: It works.\nAnd well.\nClass label: bad\nInput: It broke."
    both = [Instance("Sentence: It works.\nAnd well.", "good"), Instance("It broke.", "bad")]
    assert output_first_instances(text, was_cut=False) == both
    assert output_first_instances(text, was_cut=True) == both[:1]
    assert output_first_instances("类别：正面\n很好吃。", was_cut=False) == [Instance("很好吃。", "正面")]
    assert output_first_instances("It works.", was_cut=False) == []


GOOD = "Name a river.\n4. Input:\n<noinput>\n4. Output:\nThe Rhine."
TASK = Task("Name a river.", (Instance("", "The Rhine."),))


def test_alpaca_tasks() -> None:
    second = "###\n5. Instruction: Add up.\n5. Input: 2 and 3\n5. Output: 5"
    other = Task("Add up.", (Instance("2 and 3", "5"),))
    again = f"4. Instruction: {GOOD}\n{second}"
    for text in (f" {GOOD}\n{second}", f"{again}\n###\n", f"###\n{again}"):
        assert list(alpaca_tasks(text, 4, was_cut=False)) == [TASK, other]
        assert list(alpaca_tasks(text, 4, was_cut=True)) == [TASK]


@pytest.mark.parametrize(
    "text",
    [
        "Name a river.\n4. Output:\nThe Rhine.",
        "Name a river.\n4. Output:\nThe Rhine.\n4. Input:\n<noinput>",
        "Name a river.\n4. Input:\n<noinput>\n5. Output:\nThe Rhine.",
        "Name a river.\n4. Input:\n<noinput>\n4. Output:\nThe Rhine.\n4. Output: again",
    ],
)
def test_a_task_that_is_laid_out_otherwise_is_kept_as_text(text: str) -> None:
    assert list(alpaca_tasks(text, 4, was_cut=False)) == [f"4. Instruction: {text}"]


def test_a_task_may_hold_what_parts_and_ends_lists() -> None:
    output = "### Heading\nIn 2020. Then\n### Another"
    (task,) = alpaca_tasks(f"Write it.\n4. Input:\n<NoInput>\n4. Output:\n{output}", 4, was_cut=False)
    assert task == Task("Write it.", (Instance("", output),))


def test_alpaca_tasks_in_chinese() -> None:
    text = "写一首诗。\n4. 输入：\n<无输入>\n4. 输出：\n春天来了。\n###\n5. 指令：相加\n5. 输入：2和3\n5. 输出：5"
    assert list(alpaca_tasks(text, 4, was_cut=False)) == [
        Task("写一首诗。", (Instance("", "春天来了。"),)),
        Task("相加", (Instance("2和3", "5"),)),
    ]
