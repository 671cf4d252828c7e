"""`/v1/responses`, as OpenAI's client asks for it."""

import openai
import pytest
from served import KEY, Server
from test_formats import FLAG

TOOLS = [{"type": "function", "name": "f", "parameters": FLAG, "strict": True}]
SAID = [
    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"on":true}', "id": "fc_1"},
    {"type": "function_call_output", "call_id": "1", "output": "yes"},
]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def respond(client: openai.OpenAI, **more):
    return client.responses.create(
        **{"model": "tiny", "input": "twice", "max_output_tokens": 6, "temperature": 0, "store": False, **more}
    )


def test_a_response_is_what_the_chat_says(client) -> None:
    found = respond(client, instructions="s", input=[{"role": "user", "content": "twice"}])
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "twice"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, temperature=0)
    assert found.output_text == chat.choices[0].message.content
    usage = found.usage
    assert (usage.input_tokens, usage.output_tokens) == (chat.usage.prompt_tokens, 6)
    assert usage.total_tokens == usage.input_tokens + 6
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (0, 0)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (found.store, found.instructions, found.previous_response_id) == (False, "s", None)


def test_events_tell_how_a_response_comes_into_being(client) -> None:
    events = [*respond(client, stream=True, include=["message.output_text.logprobs"], top_logprobs=2)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert {*kinds[4:-4]} == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    deltas, done, response = events[4:-4], events[-4], events[-1].response
    assert "".join(event.delta for event in deltas) == done.text == response.output_text
    logprobs = [each for event in deltas for each in event.logprobs]
    assert len(logprobs) == 6 and all(len(each.top_logprobs) == 2 for each in logprobs)
    assert [each.logprob for each in logprobs] == [each.logprob for each in response.output[0].content[0].logprobs]
    assert {event.item_id for event in deltas} == {response.output[0].id} and events[0].response.id == response.id
    whole = respond(client)
    assert whole.output_text == response.output_text and whole.usage == response.usage


def test_a_function_is_called(client) -> None:
    asked = {"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}, "max_output_tokens": 60}
    (call,) = respond(client, **asked).output
    assert (call.type, call.name, call.status) == ("function_call", "f", "completed")
    assert call.arguments in ('{"on": true}', '{"on": false}') and call.call_id.startswith("call_")
    with client.responses.stream(model="tiny", input="twice", temperature=0, **asked) as stream:
        events = [*stream]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2] == "output_item.added" and {*kinds[3:-3]} == {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert events[-3].arguments == events[-1].response.output[0].arguments == call.arguments


def test_what_was_called_before_is_part_of_the_conversation(client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"on":true}'}}
    messages = [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "tool_calls": [call]},
        {"role": "tool", "content": "yes", "tool_call_id": "1"},
    ]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3, temperature=0)
    found = respond(client, input=SAID, max_output_tokens=3)
    assert found.output_text == chat.choices[0].message.content
    assert found.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("background", {"background": True}),
        ("truncation", {"truncation": "auto"}),
        ("include[0]", {"include": ["file_search_call.results"]}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("input", {"input": []}),
        ("input", {"input": "x" * 400}),
        ("input[0].type", {"input": [{"type": "item_reference", "id": "a"}]}),
        ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("input[0].arguments", {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]}),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}}),
        ("tools[0].type", {"tools": [{"type": "file_search"}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("max_output_tokens", {"max_output_tokens": 1000}),
    ],
)
def test_what_is_not_served_is_refused_by_name(client, field, asked) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        respond(client, **asked)
    assert error.value.param == field and error.value.body["message"].startswith(field)
