"""Answers of a certain shape, and conversations of every form, as OpenAI's client asks for them."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field
from served import KEY, Server


class Verdict(BaseModel):
    """Short whatever a model of random weights writes."""

    true: bool
    colour: Literal["red", "green"]
    reasons: list[Literal["a", "b"]] = Field(max_length=2)


FLAG = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
ASKED = [{"role": "user", "content": "twice"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": FLAG}} for name in ("f", "g")]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def chat(client: openai.OpenAI, **more):
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, "seed": 2, **more})


@pytest.mark.parametrize("seed", range(3))
def test_a_pydantic_model_is_parsed(client, seed) -> None:
    found = client.chat.completions.parse(model="tiny", messages=ASKED, response_format=Verdict, seed=seed)
    assert isinstance(found.choices[0].message.parsed, Verdict) and found.choices[0].finish_reason == "stop"
    response = client.responses.parse(model="tiny", input="twice", text_format=Verdict, temperature=seed / 2)
    assert isinstance(response.output_parsed, Verdict) and response.status == "completed"


def test_a_shape_comes_piece_by_piece_as_it_comes_whole(client) -> None:
    with client.chat.completions.stream(model="tiny", messages=ASKED, response_format=Verdict, seed=1) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
    whole = client.chat.completions.parse(model="tiny", messages=ASKED, response_format=Verdict, seed=1)
    assert len(pieces) > 3 and "".join(pieces) == whole.choices[0].message.content


def test_each_of_several_answers_has_the_shape(client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "flag", "schema": FLAG}}
    choices = chat(client, n=3, response_format=form, temperature=2).choices
    assert {choice.message.content for choice in choices} <= {'{"on": true}', '{"on": false}'}


def test_an_answer_may_be_any_object(client, opened) -> None:
    bias = {str(opened.tokenizer.encode("{}")[-1]): 100.0}
    found = chat(client, response_format={"type": "json_object"}, logit_bias=bias, temperature=0).choices[0]
    assert (found.message.content, found.finish_reason) == ("{}", "stop")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "g"}}])
def test_what_must_be_called_is_called(client, choice) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    whole = chat(client, **asked).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.function.name in (["f", "g"] if choice == "required" else ["g"])
    assert [*json.loads(call.function.arguments)] == ["on"]
    chunks = [chunk.choices[0] for chunk in chat(client, **asked, stream=True)]
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert deltas[0].function.name == call.function.name and len(deltas) > 2
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"


def test_text_may_stand_where_nothing_must_be_called(client) -> None:
    for choice in ("auto", "none"):
        found = chat(client, tools=TOOLS, tool_choice=choice, max_tokens=5).choices[0]
        assert found.message.tool_calls is None and found.message.content


def test_a_conversation_with_calls_goes_on(client, server) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"on":true}'}}
    said = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "content": "yes", "tool_call_id": "c1"},
    ]
    laid_out = '[tool] f\n[system] s\n[user] a\nb\n[assistant] <call>{"name": "f", "arguments": {"on": true}}</call>\n'
    with server.client() as http:
        ids = http.post("/tokenize", json={"messages": said, "tools": TOOLS[:1]}).json()["tokens"]
        plain = http.post("/tokenize", json={"prompt": f"{laid_out}[tool] yes\n[assistant]"}).json()["tokens"]
    assert ids == plain


def test_the_last_message_is_continued(client, opened) -> None:
    said = [*ASKED, {"role": "assistant", "content": "Document 7"}]
    more = {"temperature": 0, "max_tokens": 6, "extra_body": {"continue_final_message": True}}
    found = chat(client, messages=said, **more).choices[0].message.content
    prompt = "[user] twice\n[assistant] Document 7"
    assert found == client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=6).choices[0].text


FORM = "response_format"
JSON = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        (f"{FORM}.type", {FORM: {"type": "xml"}}),
        (f"{FORM}.json_schema", {FORM: {"type": "json_schema"}}),
        (f"{FORM}.json_schema.schema", {FORM: JSON}),
        (f"{FORM}.json_schema.name", {FORM: {"type": "json_schema", "json_schema": {"name": "a b"}}}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools[1]", {"tools": TOOLS[:1] * 2}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}}),
        ("tool_choice.type", {"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("ignore_eos", {"tools": TOOLS, "extra_body": {"ignore_eos": True}}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "a"}]}),
        (
            "messages[0].tool_calls[0].function.arguments",
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
        ),
        ("messages[0].role", {"extra_body": {"continue_final_message": True}}),
        ("messages", {"messages": [{"role": "user", "content": "x" * 400}]}),
    ],
)
def test_what_cannot_be_is_refused_by_name(client, field, asked) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, **asked)
    assert error.value.param == field and error.value.body["message"].startswith(field)
