"""OpenAI's client against the command `serve` with SmolLM2-135M-Instruct, which the environment variable SMOLLM2 names:
a directory or a GGUF file."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

WEIGHTS = os.environ.get("SMOLLM2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WEIGHTS is None, reason="SMOLLM2 names no weights of SmolLM2-135M-Instruct"),
]
NAME = "smollm2"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as users have
ASKED = [{"role": "user", "content": "Name three animals that live in a forest."}]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--model", str(WEIGHTS), "--name", NAME, "--port", str(port), "--slots", "4", "--length", "1024"]
    process = subprocess.Popen([sys.executable, "-m", "llama_jax.serve", *options], env=ENVIRONMENT)
    made = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0, timeout=120)
    try:
        for _ in range(1200):
            with contextlib.suppress(openai.APIConnectionError):
                made.models.list()
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        assert process.wait(60) == 0


def chat(client: openai.OpenAI, **more):
    asked = {"model": NAME, "messages": ASKED, "max_completion_tokens": 48, "temperature": 0}
    return client.chat.completions.create(**{**asked, **more})


def generated(*options: str) -> str:
    command = [sys.executable, "-m", "llama_jax.generate", "--model", str(WEIGHTS), "--max_new_tokens", "48"]
    done = subprocess.run(
        [*command, "--temperature", "0", "--json", *options],
        check=True,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    return json.loads(done.stdout.splitlines()[-1])["text"]


def test_greedy_text_is_that_of_generate(client) -> None:
    prompt = ASKED[0]["content"]
    assert chat(client).choices[0].message.content == generated("--chat", "true", "--prompt", prompt)
    found = client.completions.create(model=NAME, prompt="Gravity is", max_tokens=48, temperature=0)
    assert generated("--prompt", "Gravity is").removeprefix("Gravity is") == found.choices[0].text


def test_streams_add_up_to_what_comes_whole(client) -> None:
    whole = chat(client)
    chunks = [*chat(client, stream=True, stream_options={"include_usage": True})]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    asked = {"model": NAME, "prompt": "Gravity is", "max_tokens": 24, "temperature": 0}
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == client.completions.create(**asked).choices[0].text
    asked = {"model": NAME, "input": ASKED[0]["content"], "max_output_tokens": 48, "temperature": 0, "store": False}
    events = [*client.responses.create(**asked, stream=True)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == client.responses.create(**asked).output_text == whole.choices[0].message.content


def test_log_probabilities_and_models(client) -> None:
    found = chat(client, logprobs=True, top_logprobs=3).choices[0]
    assert "".join(each.token for each in found.logprobs.content) == found.message.content
    assert all(each.logprob == each.top_logprobs[0].logprob for each in found.logprobs.content)  # greedy
    assert [model.id for model in client.models.list()] == [NAME] and client.models.retrieve(NAME).id == NAME


class Person(BaseModel):
    name: str
    age: int
    job: str


class Review(BaseModel):
    mood: Literal["good", "bad"]
    stars: int
    words: list[Literal["food", "price", "staff", "place"]] = Field(max_length=2)  # else a small model repeats itself


PEOPLE = [
    "Ann is 41 and a baker.", "Bob Stone, a 29 year old teacher, lives in Leeds.", "Dr. Chen (55) runs a clinic.",
    "My aunt Dora is seventy and was a pilot.", "Eve, 33, writes software.", "Farmer Finn is 62.",
    "Gita sings in a band and is 24.", "Hugo is a nurse of 38 years.", "Ines turned 19 and studies law.",
    "Jon, the 47 year old judge, retired.",
]  # fmt: skip
REVIEWS = [
    "The soup was cold and dear.", "Lovely people, I will come again!", "Too loud, but the fish was great.",
    "Five stars for the waiter.", "I found a hair in my salad.", "Cheap and cheerful.", "The view alone is worth it.",
    "We waited for two hours.", "Best cake in town.", "Never again.",
]  # fmt: skip


def test_pydantic_models_are_parsed_for_twenty_of_twenty_prompts(client) -> None:
    cases = [(Person, f"Who is it? {text}") for text in PEOPLE] + [(Review, f"Judge: {text}") for text in REVIEWS]
    for form, text in cases:
        asked = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_completion_tokens": 200}
        found = client.chat.completions.parse(**asked, response_format=form, temperature=0).choices[0]
        print(found.message.content)
        assert isinstance(found.message.parsed, form) and found.finish_reason == "stop", text
    assert len(cases) == 20
    asked = {"model": NAME, "input": f"Who is it? {PEOPLE[0]}", "max_output_tokens": 200, "temperature": 0}
    assert isinstance(client.responses.parse(**asked, text_format=Person).output_parsed, Person)


class Weather(BaseModel):
    """Tells the weather in a city."""

    city: str


def test_functions_are_called(client) -> None:
    tools = [openai.pydantic_function_tool(Weather)]
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"model": NAME, "messages": messages, "tools": tools, "temperature": 0, "max_completion_tokens": 64}
    found = client.chat.completions.parse(**asked, tool_choice="required", parallel_tool_calls=False).choices[0]
    (call,) = found.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather) and found.finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 12 degrees."}
    after = chat(client, messages=[*messages, found.message, result], tools=tools)
    assert after.choices[0].message.content


def test_errors_are_the_clients_own(client) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        chat(client, model="gpt-5")
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens") as error:
        chat(client, max_completion_tokens=5000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"temperature: is 3\.0, a number from 0 to 2 is expected"):
        chat(client, temperature=3.0)
