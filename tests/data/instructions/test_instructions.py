"""Each format's records become the conversation they hold, and each kind of bad record gets its reason and its line."""

import pytest

from llama_jax.data.instructions.examples import starter_records
from llama_jax.data.instructions.records import Turn, conversation_of, format_of
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.record_text import Record

SYSTEM, ASK, TELL = Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Ho")


def turns(form, **values):
    return conversation_of(Record("a.jsonl:3", values), form)


def chat(*said: str, names=("role", "content")):
    """Turns of a record from texts such as "user: Hi"."""
    return [dict(zip(names, each.split(": "), strict=True)) for each in said]


TOLD = {"role": "assistant", "content": "Ho"}

GOOD = [
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}, (ASK, TELL)),
    ("alpaca", {"instruction": "Hi", "output": "Ho"}, (ASK, TELL)),
    ("alpaca", {"instruction": "Hi", "input": None, "output": "Ho", "text": "all of it"}, (ASK, TELL)),
    ("alpaca", {"instruction": "Hi", "input": "there", "output": "Ho"}, (Turn("user", "Hi", "there"), TELL)),
    (
        "alpaca",
        {"instruction": "Hi", "output": "Ho", "system": "Be brief.", "history": [["a", "b"]]},
        (SYSTEM, Turn("user", "a"), Turn("assistant", "b"), ASK, TELL),
    ),
    ("sharegpt", {"conversations": chat("human: Hi", "gpt: Ho", names=("from", "value"))}, (ASK, TELL)),
    ("sharegpt", {"conversations": chat("user: Hi", "assistant: Ho")}, (ASK, TELL)),
    (
        "sharegpt",
        {"conversations": chat("gpt: I am here", "human: Hi", "gpt: Ho", names=("from", "value"))},
        (ASK, TELL),
    ),
    ("sharegpt", {"conversations": chat("human: Hi", "gpt: Ho", "human: Bye", names=("from", "value"))}, (ASK, TELL)),
    ("sharegpt", {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Ho"]}}, (ASK, TELL)),
    ("messages", {"messages": chat("system: Be brief.", "user: Hi", "assistant: Ho")}, (SYSTEM, ASK, TELL)),
    ("messages", {"messages": chat("user: Hi", "assistant: Ho"), "system": "Be brief."}, (SYSTEM, ASK, TELL)),
    (
        "messages",
        {
            "messages": [
                *chat("user: Hi"),
                {"role": "assistant", "content": "Ho", "weight": 0},
                *chat("user: a", "assistant: b"),
            ]
        },
        (ASK, TELL._replace(is_learned=False), Turn("user", "a"), Turn("assistant", "b")),
    ),
    ("prompt_completion", {"prompt": "Hi", "completion": "Ho"}, (ASK, TELL)),
    (
        "prompt_completion",
        {"prompt": chat("user: Hi", "assistant: Ho", "user: a"), "completion": chat("assistant: b")},
        (ASK, TELL._replace(is_learned=False), Turn("user", "a"), Turn("assistant", "b")),
    ),
    ("text", {"text": "Hi"}, "Hi"),
    # A system turn that says nothing is none, wherever it stands.
    ("alpaca", {"instruction": "Hi", "output": "Ho", "system": " \n"}, (ASK, TELL)),
    ("messages", {"messages": [{"role": "system", "content": ""}, *chat("user: Hi", "assistant: Ho")]}, (ASK, TELL)),
    ("messages", {"messages": [{"role": "system", "content": None}, *chat("user: Hi", "assistant: Ho")]}, (ASK, TELL)),
    (
        "messages",
        {"messages": [*chat("user: Hi"), {"role": "system", "content": "\t"}, *chat("assistant: Ho")]},
        (ASK, TELL),
    ),
    (
        "messages",
        {
            "system": "",
            "messages": [{"role": "system", "content": " "}, *chat("system: Be brief.", "user: Hi", "assistant: Ho")],
        },
        (SYSTEM, ASK, TELL),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": " \n"}, *chat("human: Hi", "gpt: Ho", names=("from", "value"))]},
        (ASK, TELL),
    ),
    ("sharegpt", {"conversations": {"from": ["system", "human", "gpt"], "value": ["", "Hi", "Ho"]}}, (ASK, TELL)),
    (
        "prompt_completion",
        {"prompt": [{"role": "system", "content": ""}, *chat("user: Hi")], "completion": chat("assistant: Ho")},
        (ASK, TELL),
    ),
    # Axolotl's field, beside OpenAI's.
    (
        "messages",
        {"messages": [*chat("user: Hi"), TOLD | {"train": False}, *chat("user: a", "assistant: b")]},
        (ASK, TELL._replace(is_learned=False), Turn("user", "a"), Turn("assistant", "b")),
    ),
    (
        "sharegpt",
        {
            "conversations": {
                "from": ["human", "gpt"] * 2,
                "value": ["Hi", "Ho"] * 2,
                "train": [None, False, False, True],
            }
        },
        (ASK, TELL._replace(is_learned=False), ASK, TELL),
    ),
    (
        "prompt_completion",
        {"prompt": chat("user: Hi"), "completion": [TOLD | {"train": True, "weight": 1}]},
        (ASK, TELL),
    ),
    ("messages", {"messages": [*chat("user: Hi"), TOLD | {"train": None, "weight": 1.0}]}, (ASK, TELL)),
    (
        "messages",
        {"messages": [*chat("user: Hi"), TOLD | {"reasoning_content": "He says hi."}]},
        (ASK, TELL._replace(reasoning="He says hi.")),
    ),
    ("messages", {"messages": [*chat("user: Hi"), TOLD | {"reasoning_content": None}]}, (ASK, TELL)),
]


@pytest.mark.parametrize(("form", "values", "conversation"), GOOD)
def test_a_record_holds_a_conversation(form, values, conversation):
    assert turns(form, **values) == conversation
    assert format_of(values) == form


@pytest.mark.parametrize("fields", [[], ["instruction"], ["Text"], ["prompt", "response"], ["question", "answer"]])
def test_other_fields_are_no_format(fields):
    assert format_of(fields) is None


BAD = {
    "no output": ("alpaca", {"instruction": "Hi"}, "missing_field", "no field 'output'; it has instruction"),
    "no instruction": (
        "alpaca",
        {"instructions": "Hi", "output": "Ho"},
        "missing_field",
        "did you mean 'instructions'?",
    ),
    "null output": ("alpaca", {"instruction": "Hi", "output": None}, "null_field", "field 'output' is null"),
    "no answer": ("alpaca", {"instruction": "Hi", "output": ""}, "empty", "field 'output' is empty"),
    "blank answer": ("alpaca", {"instruction": "Hi", "output": " \n"}, "empty", "field 'output' is empty"),
    "no question": ("alpaca", {"instruction": "", "output": "Ho"}, "empty", "field 'instruction' is empty"),
    "number": ("alpaca", {"instruction": "Hi", "output": 3}, "wrong_type", "field 'output' is of type number"),
    "NaN": ("alpaca", {"instruction": "Hi", "output": float("nan")}, "wrong_type", "field 'output' is of type number"),
    "list": ("alpaca", {"instruction": "Hi", "output": ["Ho"]}, "wrong_type", "field 'output' is of type list"),
    "input of a wrong type": (
        "alpaca",
        {"instruction": "Hi", "input": 1, "output": "Ho"},
        "wrong_type",
        "'input' is of",
    ),
    "surrogate": ("alpaca", {"instruction": "Hi", "output": "a\ud800"}, "surrogate", "an unpaired surrogate"),
    "NUL": ("alpaca", {"instruction": "H\0", "output": "Ho"}, "nul", "field 'instruction' holds NUL at character 1"),
    "history": (
        "alpaca",
        {"instruction": "a", "output": "b", "history": [["c"]]},
        "wrong_type",
        "history[0] is not a pair",
    ),
    "history text": (
        "alpaca",
        {"instruction": "a", "output": "b", "history": "c"},
        "wrong_type",
        "'history' is of type",
    ),
    "text is blank": ("text", {"text": " "}, "empty", "field 'text' is empty"),
    "no completion": ("prompt_completion", {"prompt": "a"}, "missing_field", "no field 'completion'; it has prompt"),
    "empty completion": ("prompt_completion", {"prompt": "a", "completion": ""}, "empty", "'completion' is empty"),
    "completion list": (
        "prompt_completion",
        {"prompt": "a", "completion": []},
        "wrong_type",
        "'prompt' is of type string",
    ),
    "messages null": ("messages", {"messages": None}, "null_field", "field 'messages' is null; it must be a list"),
    "conversations null": (
        "sharegpt",
        {"conversations": None},
        "null_field",
        "'conversations' is null; it must be a list",
    ),
    "prompt null": (
        "prompt_completion",
        {"prompt": None, "completion": [TOLD]},
        "null_field",
        "field 'prompt' is null; it must be a list",
    ),
    "answer and empty system": (
        "messages",
        {"messages": [{"role": "system", "content": ""}, TOLD | {"content": " "}]},
        "empty",
        "messages[1].content' is empty",
    ),
    "train": (
        "messages",
        {"messages": [*chat("user: a"), TOLD | {"train": "no"}]},
        "wrong_type",
        "messages[1].train must be true or false",
    ),
    "train and weight": (
        "messages",
        {"messages": [*chat("user: a"), TOLD | {"weight": 1, "train": False}]},
        "contradiction",
        "messages[1] has weight 1 and train false, which contradict each other",
    ),
    "nothing to train": (
        "messages",
        {"messages": [*chat("user: a"), TOLD | {"train": False}]},
        "no_answer",
        "so there is nothing to learn",
    ),
    "reasoning of a wrong type": (
        "messages",
        {"messages": [*chat("user: a"), TOLD | {"reasoning_content": ["b"]}]},
        "wrong_type",
        "'messages[1].reasoning_content' is of type list",
    ),
    "messages text": (
        "messages",
        {"messages": "Hi"},
        "wrong_type",
        "field 'messages' is of type string; it must be a list",
    ),
    "messages empty": ("messages", {"messages": []}, "empty", "field 'messages' is empty"),
    "a turn is a text": ("messages", {"messages": ["Hi"]}, "wrong_type", "messages[0] is of type string"),
    "no role": ("messages", {"messages": [{"content": "Hi"}]}, "missing_field", "messages[0] has no field 'role'"),
    "no content": ("messages", {"messages": [{"role": "user"}]}, "missing_field", "messages[0] has no field 'content'"),
    "null content": (
        "messages",
        {"messages": [{"role": "user", "content": None}]},
        "null_field",
        "messages[0].content",
    ),
    "role": ("messages", {"messages": chat("user: a", "tool: b")}, "unknown_role", "messages[1].role is 'tool'; known"),
    "role of a wrong type": (
        "messages",
        {"messages": [{"role": 1, "content": "a"}]},
        "wrong_type",
        "messages[0].role is",
    ),
    "no assistant": (
        "messages",
        {"messages": chat("system: a", "user: b")},
        "no_answer",
        "has no turn of an assistant",
    ),
    "only the first": ("messages", {"messages": chat("assistant: a", "user: b")}, "no_answer", "no answer to a user"),
    "twice": (
        "messages",
        {"messages": chat("user: a", "user: b", "assistant: c")},
        "turns",
        "user speaks twice in a row",
    ),
    "late system": (
        "messages",
        {"messages": chat("user: a", "system: b", "assistant: c")},
        "turns",
        "system turn that is",
    ),
    "two systems": (
        "messages",
        {"messages": chat("system: a", "system: b", "user: c", "assistant: d")},
        "turns",
        "system",
    ),
    "nothing learned": (
        "messages",
        {"messages": [*chat("user: a"), {"role": "assistant", "content": "b", "weight": 0}]},
        "no_answer",
        "so there is nothing to learn",
    ),
    "weight": (
        "messages",
        {"messages": [*chat("user: a"), {"role": "assistant", "content": "b", "weight": "x"}]},
        "wrong_type",
        "messages[1].weight must be 0 or 1",
    ),
    "no conversations": ("sharegpt", {"conversation": []}, "missing_field", "did you mean 'conversation'?"),
    "no value": ("sharegpt", {"conversations": [{"from": "human"}]}, "missing_field", "no field 'value'"),
    "human alone": ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}, "no_answer", "nothing to learn"),
    "empty value": ("sharegpt", {"conversations": [{"from": "gpt", "value": ""}]}, "empty", "conversations[0].value"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_has_a_reason_and_a_place(kind):
    form, values, reason, message = BAD[kind]
    with pytest.raises(BadRecordError) as caught:
        turns(form, **values)
    error = caught.value
    assert (error.reason, error.where) == (reason, "a.jsonl:3")
    assert message in str(error) and "\n" not in str(error)


def test_the_starter_set_is_good_and_varied():
    records = starter_records()
    conversations = [conversation_of(records[number], "alpaca") for number in range(len(records))]
    assert len(records) == len(set(conversations)) >= 300
    assert sum(bool(conversation[0].input) for conversation in conversations) > 100
    assert records[2].place == "starter[2]"
