"""Every format of preferences gives the same prompt and answers; what is wrong with a record is named."""

import pytest

from llama_jax.data.instructions.records import Turn
from llama_jax.data.preferences.records import Compared, compared, kind_of_fields, shared_opening
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.record_text import Record

ASKED, GOOD, BAD = "Name a cat.", "Tom", "A dog"
PROMPT = (Turn("user", ASKED),)
PAIR = Compared(PROMPT, ((Turn("assistant", GOOD),), (Turn("assistant", BAD),)), 0.0)


def user(text, **more):
    return {"role": "user", "content": text, **more}


def said(text):
    return {"role": "assistant", "content": text}


PAIRS = {
    "texts": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "turns": {"prompt": [user(ASKED)], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    "one turn each": {"prompt": [user(ASKED)], "chosen": said(GOOD), "rejected": said(BAD)},
    "implicit prompt": {"chosen": [user(ASKED), said(GOOD)], "rejected": [user(ASKED), said(BAD)]},
    "prompt said twice": {"prompt": ASKED, "chosen": [user(ASKED), said(GOOD)], "rejected": [user(ASKED), said(BAD)]},
    "texts with one opening": {"chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED} {BAD}"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": ASKED}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "HH-RLHF": {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}",
    },
    "DeepSpeed-Chat": {"prompt": f"Human: {ASKED} Assistant:", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
    "Alpaca's": {"instruction": ASKED, "input": "", "output": "none", "chosen": GOOD, "rejected": BAD},
    "Orca's": {"system": "", "question": ASKED, "chosen": GOOD, "rejected": BAD},
    "Argilla's": {"input": ASKED, "chosen": GOOD, "rejected": BAD},
    "rm-static": {"prompt": f"\n\nHuman: {ASKED}\n\nAssistant:", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
}


SILENT = {"role": "system", "content": " "}
"""Is no turn."""


def stripped(found: Compared) -> Compared:
    answers = tuple(tuple(turn._replace(content=turn.content.strip()) for turn in turns) for turns in found.answers)
    return found._replace(answers=answers)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_format_are_the_same(name):
    assert kind_of_fields(PAIRS[name]) == "pairs"
    assert stripped(compared(Record("a:1", PAIRS[name]), "pairs")) == PAIR


def test_the_input_of_an_instruction_is_a_part_of_the_prompt():
    """Also where the answers begin alike, which says nothing of the prompt."""
    record = {"instruction": "Add.", "input": "1 and 2", "chosen": "It is 3", "rejected": "It is 4"}
    assert compared(Record("a:1", record), "pairs") == Compared(
        (Turn("user", "Add.", "1 and 2"),), ((Turn("assistant", "It is 3"),), (Turn("assistant", "It is 4"),)), 0.0
    )


def test_a_conversation_of_several_turns_parts_where_the_answers_do():
    opening = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: and now?"
    record = {"chosen": f"{opening}\n\nAssistant: Go on.", "rejected": f"{opening}\n\nAssistant: Stop."}
    found = compared(Record("a:1", record), "pairs")
    assert [(turn.role, turn.content, turn.is_learned) for turn in found.prompt] == [
        ("user", "hi", True),
        ("assistant", "ho", False),  # given, not learned
        ("user", "and now?", True),
    ]
    assert [turns[0].content for turns in found.answers] == ["Go on.", "Stop."]


def test_a_greeting_before_the_first_user_is_no_part_of_the_prompt():
    record = {"prompt": [said("Hello!"), user(ASKED)], "chosen": GOOD, "rejected": BAD}
    assert compared(Record("a:1", record), "pairs") == PAIR


def test_a_prompt_of_nothing_but_space_takes_no_time():
    space = " " * 2**20
    with pytest.raises(BadRecordError, match="says nothing"):
        compared(
            Record("a:1", {"chosen": f"Human:{space}Assistant: a", "rejected": f"Human:{space}x Assistant:"}), "pairs"
        )


def test_margins_and_scores_are_numbers_and_zero_is_one():
    assert compared(Record("a:1", PAIRS["texts"] | {"margin": 1.5}), "pairs").label == 1.5
    scored = {"user_input": ASKED, "completion": GOOD, "score": 0}
    assert kind_of_fields(scored) == "scores" and compared(Record("a:1", scored), "scores").label == 0.0
    judged = {"prompt": ASKED, "completion": GOOD, "label": False}
    assert kind_of_fields(judged) == "labels" and compared(Record("a:1", judged), "labels").label == 0.0
    messages = {"messages": [user(ASKED), said(GOOD)], "label": True}
    assert compared(Record("a:1", messages), "labels") == Compared(PROMPT, ((Turn("assistant", GOOD),),), 1.0)


@pytest.mark.parametrize(
    ("record", "kind", "reason", "message"),
    [
        ({"prompt": ASKED, "chosen": GOOD}, "pairs", "missing_field", "a:1: no field 'rejected'"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": " "}, "pairs", "empty", "field 'rejected' is empty"),
        ({"chosen": "Tom", "rejected": "A dog"}, "pairs", "no_prompt", "have no prompt in common"),
        (
            {"chosen": f"\n\nHuman: {ASKED}\n\nAssistant:", "rejected": PAIRS["HH-RLHF"]["rejected"]},
            "pairs",
            "empty",
            "chosen says nothing beyond the prompt",
        ),
        (PAIRS["texts"] | {"margin": "much"}, "pairs", "wrong_type", "field 'margin' is of type string"),
        ({"prompt": [said("ho")], "chosen": GOOD, "rejected": BAD}, "pairs", "turns", "does not end with a user's"),
        ({"prompt": ASKED, "completion": GOOD, "label": "good"}, "labels", "wrong_type", "is 'good'; it must be true"),
        ({"user_input": ASKED, "completion": GOOD, "score": None}, "scores", "no_score", "'score' is null or missing"),
        ({"user_input": ASKED, "completion": GOOD, "score": float("nan")}, "scores", "not_finite", "'score' must be a"),
        ({"user_input": ASKED, "completion": GOOD, "score": -(10**400)}, "scores", "not_finite", "of at most 1e+30"),
        ({"completion": GOOD, "score": 3}, "scores", "missing_field", "no field 'prompt'"),
        (PAIRS["texts"] | {"prompt": [SILENT]}, "pairs", "turns", "does not end with a user's turn"),
        (PAIRS["texts"] | {"chosen": [SILENT]}, "pairs", "empty", "chosen says nothing"),
        (PAIRS["implicit prompt"] | {"rejected": SILENT}, "pairs", "empty", "rejected says nothing"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(record, kind, reason, message):
    with pytest.raises(BadRecordError) as told:
        compared(Record("a:1", record), kind)
    assert told.value.reason == reason and message in str(told.value)


def test_a_shared_opening_is_counted():
    assert (
        shared_opening([1, 2, 3], [1, 2, 4]) == 2 and shared_opening("ab", "abc") == 2 and not shared_opening([], [1])
    )
