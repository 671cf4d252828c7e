"""What the routes answer, as OpenAI's client and plain HTTP see it."""

import dataclasses
import json
from collections.abc import Iterator

import openai
import pytest
from served import KEY, TEMPLATE

from llama_jax.inference import generate
from llama_jax.inference.server.config import ServeConfig
from llama_jax.inference.server.service import Service

ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is twice 7?"}]


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def greedy(opened, prompt: str, tokens: int) -> str:
    return generate(opened.model, opened.params, opened.tokenizer, prompt, max_new_tokens=tokens, temperature=0.0)


def test_a_chat_is_what_the_model_continues_its_template_with(client, opened) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_completion_tokens=9)
    laid_out = "[system] Be brief.\n[user] What is twice 7?\n[assistant]"
    assert answer.choices[0].message.content == greedy(opened, laid_out, 9)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "length"
    prompt = len(opened.tokenizer.encode(laid_out, bos=True))
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 9, prompt + 9)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "tiny"


def test_a_chat_comes_piece_by_piece_as_it_comes_whole(client) -> None:
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 20, "seed": 5, "n": 2, "logprobs": True, "top_logprobs": 2}
    asked["extra_body"] = {"ignore_eos": True}
    whole = client.chat.completions.create(**asked)
    texts, logprobs, ends, usages = ["", ""], [[], []], {}, []
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    for chunk in chunks:
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
            ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert [[each.token for each in part] for part in logprobs] == [
        [each.token for each in choice.logprobs.content] for choice in whole.choices
    ]
    assert ends == {0: "length", 1: "length"}
    assert usages == [whole.usage] and chunks[-1].choices == []


def test_a_completion_is_what_generate_writes_and_its_stream_adds_up(client, opened) -> None:
    asked = {"model": "tiny", "prompt": ["Document 7", "twice"], "temperature": 0, "max_tokens": 12}
    texts = [choice.text for choice in client.completions.create(**asked).choices]
    assert texts == [greedy(opened, prompt, 12) for prompt in asked["prompt"]]
    streamed = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts
    ids = [opened.tokenizer.encode(prompt, bos=True) for prompt in asked["prompt"]]
    assert [choice.text for choice in client.completions.create(**{**asked, "prompt": ids}).choices] == texts
    assert client.completions.create(**{**asked, "prompt": ids[0]}).choices[0].text == texts[0]


def test_a_stop_text_ends_the_answer_before_it(client) -> None:
    asked = {"model": "tiny", "prompt": "Document 7", "temperature": 0, "max_tokens": 30}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[5:8]
    cut = client.completions.create(**asked, stop=["never", stop])
    assert cut.choices[0].text == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 30
    streamed = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.choices[0].text


def test_a_stop_token_ends_the_answer(client, opened) -> None:
    asked = {"model": "tiny", "prompt": "Document 7", "temperature": 0, "max_tokens": 8, "logprobs": 0}
    tokens = client.completions.create(**asked).choices[0].logprobs.tokens
    ids = client.completions.create(**asked, extra_body={"stop_token_ids": [opened.tokenizer.encode(tokens[0])[-1]]})
    assert ids.choices[0].finish_reason in ("stop", "length")
    biased = client.completions.create(**asked, logit_bias={str(opened.tokenizer.eos_id): 100})
    assert (biased.choices[0].finish_reason, biased.choices[0].text) == ("stop", "")
    assert biased.usage.completion_tokens == 1 and biased.choices[0].logprobs.tokens == []
    ignored = client.completions.create(
        **asked, logit_bias={str(opened.tokenizer.eos_id): 100}, extra_body={"ignore_eos": True}
    )
    assert (ignored.choices[0].finish_reason, ignored.usage.completion_tokens) == ("length", 8)


def test_a_seed_says_it_again_and_none_says_something_else(client) -> None:
    asked = {"model": "tiny", "prompt": "twice", "max_tokens": 12}
    first, again, other = (client.completions.create(**asked, seed=seed).choices[0].text for seed in (1, 1, 2))
    assert first == again != other
    assert client.completions.create(**asked).choices[0].text != client.completions.create(**asked).choices[0].text


def test_log_probabilities_of_completions_lie_where_their_texts_are(client) -> None:
    choice = client.completions.create(
        model="tiny", prompt="Document 7", max_tokens=12, temperature=0, logprobs=2
    ).choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 12
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values()) and len(top) <= 2


def test_models_are_listed_and_found(client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is tiny") as caught:
        client.models.retrieve("large")
    assert caught.value.code == "model_not_found"


def test_errors_are_the_clients_own(client) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"temperature: is 3.0, a number from 0 to 2 is expected"
    ) as caught:
        client.completions.create(model="tiny", prompt="x", temperature=3.0)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="temprature: unknown field; did you mean 'temperature'"):
        client.completions.create(model="tiny", prompt="x", extra_body={"temprature": 1})
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        stranger.models.list()


def test_what_changes_nothing_is_accepted(server) -> None:
    nothing = {
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "verbosity": "low",
        "reasoning_effort": "low",
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"],
        "min_tokens": 0,
        "logit_bias": None,
        "stop": None,
        "max_tokens": 1,
    }
    with server.client() as http:
        assert http.post("/v1/chat/completions", json={"messages": ASK, **nothing}).status_code == 200


def test_text_becomes_tokens_and_text_again(server, opened) -> None:
    with server.client() as http:
        found = http.post("/tokenize", json={"prompt": "twice 日本 🙂"}).json()
        assert found["tokens"] == opened.tokenizer.encode("twice 日本 🙂", bos=True)
        assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 128)
        assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "twice 日本 🙂"}
        bare = http.post("/tokenize", json={"prompt": "twice", "add_special_tokens": False, "return_token_strs": True})
        assert bare.json()["tokens"] == opened.tokenizer.encode("twice") and "token_strs" in bare.json()
        chat = http.post("/tokenize", json={"messages": ASK}).json()
        assert opened.tokenizer.decode(chat["tokens"]).endswith("[assistant]") and "[assistant]" in TEMPLATE


def test_events_are_ascii_lines_and_end_with_done(server) -> None:
    with server.client() as http:
        answer = http.post(
            "/v1/completions", json={"prompt": "日本 🙂\u2028", "max_tokens": 30, "seed": 1, "stream": True}
        )
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.content.isascii()
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert {json.loads(event.removeprefix("data: "))["object"] for event in events} == {"text_completion"}


def test_metrics_count_what_was_answered(server) -> None:
    def values() -> dict[str, float]:
        server.await_ends()
        lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    with server.client() as http:
        before = values()
        assert http.post("/v1/completions", json={"prompt": "twice", "max_tokens": 7, "n": 2}).status_code == 200
        after = values()
    route = 'llama_jax_requests_total{route="/v1/completions",status="200"}'
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown[route] == 1 and grown['llama_jax_requests_total{route="/metrics",status="200"}'] == 1
    assert grown["llama_jax_prompt_tokens_total"] == 2 and grown["llama_jax_generated_tokens_total"] <= 14
    assert grown["llama_jax_time_to_first_token_seconds_count"] == 2
    assert grown['llama_jax_request_time_seconds_bucket{le="+Inf"}'] == grown["llama_jax_request_time_seconds_count"]
    assert (after["llama_jax_slots"], after["llama_jax_answers_open"]) == (2, 0)


@pytest.mark.parametrize(
    ("adapters", "name", "models"),
    [
        ((), None, {"tiny": None}),
        ((), "mine", {"mine": None}),
        (("runs/poet/",), None, {"poet": None}),
        (("runs/poet", "cook"), None, {"tiny": None, "poet": 0, "cook": 1}),
        (("runs/poet", "cook"), "base", {"base": None, "poet": 0, "cook": 1}),
        (("a/poet", "b/poet"), None, {"tiny": None, "a/poet": 0, "b/poet": 1}),
    ],
)
def test_the_base_and_each_of_several_adapters_are_models(opened, server, adapters, name, models) -> None:
    source = f"models/tiny with {', '.join(adapters)}" if adapters else opened.source
    adapted = dataclasses.replace(opened, adapters=adapters, source=source)
    service = Service(adapted, server.service.worker, ServeConfig(name=name))
    assert service.models == models
    assert service.adapter(None) is None and service.adapter(list(models)[-1]) == list(models.values())[-1]
