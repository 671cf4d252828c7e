"""Conversations have the ids that Hugging Face transformers gives them and the masks it marks, as recorded by
`tests/oracle/record_chats.py`."""

import json
from pathlib import Path

import pytest
from small_chats import CONVERSATIONS, TEMPLATES, TOOL_CHAT, TOOL_TEMPLATE, TOOLS, tokenizer_json

from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.instructions.records import conversation_of
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.sources.record_text import Record
from llama_jax.data.tokenizers import HuggingFaceTokenizer

ORACLE = Path(__file__).parents[2] / "oracle"

RECORDED = json.loads((ORACLE / "transformers_chats.json").read_text())
CASES = [(name, number) for name in TEMPLATES for number in range(len(CONVERSATIONS))]
MERGES = ("chatml", 3)
"""Where the answer begins with a line end, which is one token with that before it."""


def tokenizer_of(template: str) -> HuggingFaceTokenizer:
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "add_bos_token": False}
    beside = {"tokenizer_config.json": json.dumps(config).encode(), "chat_template.jinja": template.encode()}
    return HuggingFaceTokenizer(tokenizer_json(), beside)


def encoded(layout: Layout, number: int) -> tuple[list[int], list[int]]:
    conversation = conversation_of(Record("a", {"messages": CONVERSATIONS[number]}), "messages")
    ids, learned = layout.encode(conversation, "a")
    return ids, [int(is_learned) for is_learned in learned]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_conversation_has_the_ids_and_the_mask_of_transformers(name, number):
    tokenizer, recorded = tokenizer_of(TEMPLATES[name]), RECORDED[name][number]
    ids, learned = encoded(Layout("model", tokenizer), number)
    assert encode_chat(tokenizer, CONVERSATIONS[number][:-1]) == recorded["prompt"]
    if (name, number) != MERGES:
        assert ids == recorded["ids"] and learned == recorded["answers"]


# transformers leaves out what the template of Llama 3 trims.
@pytest.mark.parametrize(("name", "number"), [case for case in CASES if case != ("llama3", 2) and case[0] != "llama2"])
def test_a_conversation_goes_on_where_that_of_transformers_does(name, number):
    ids = encode_chat(tokenizer_of(TEMPLATES[name]), CONVERSATIONS[number], goes_on=True)
    assert ids == RECORDED[name][number]["goes_on"]


def test_a_conversation_with_tools_has_the_ids_of_transformers():
    assert encode_chat(tokenizer_of(TOOL_TEMPLATE), TOOL_CHAT, tools=TOOLS) == RECORDED["tools"]


def test_an_answer_that_merges_with_the_end_of_its_prompt_leaves_the_prompt_as_it_is_asked():
    name, number = MERGES
    tokenizer, recorded = tokenizer_of(TEMPLATES[name]), RECORDED[name][number]
    ids, learned = encoded(Layout("model", tokenizer), number)
    prompt = encode_chat(tokenizer, CONVERSATIONS[number][:1])
    assert recorded["ids"][: len(prompt)] != prompt == ids[: len(prompt)]
    assert learned[: len(prompt) + 1] == [0] * len(prompt) + [1]
    assert tokenizer.decode(ids) == tokenizer.decode(recorded["ids"])


@pytest.mark.parametrize(("name", "number"), [case for case in CASES if case[0] != "llama2"])
def test_templates_that_come_with_the_package_are_those_of_transformers(name, number):
    """But for Llama 2's, which learns no space before EOS."""
    tokenizer = tokenizer_of(TEMPLATES[name])
    assert encoded(Layout(name, tokenizer), number) == encoded(Layout("model", tokenizer), number)


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_llama_2s_template_is_that_of_transformers_but_for_the_space_before_eos(number):
    tokenizer = tokenizer_of(TEMPLATES["llama2"])
    ids, learned = encoded(Layout("llama2", tokenizer), number)
    theirs, marked = RECORDED["llama2"][number]["ids"], RECORDED["llama2"][number]["answers"]
    (space,) = tokenizer.encode(" ")
    before_eos = [theirs[place : place + 2] == [space, tokenizer.eos_id] for place in range(len(theirs))]
    assert sum(before_eos) == sum(message["role"] == "assistant" for message in CONVERSATIONS[number])
    assert ids == [token for token, is_space in zip(theirs, before_eos, strict=True) if not is_space]
    assert learned == [mark for mark, is_space in zip(marked, before_eos, strict=True) if not is_space]
