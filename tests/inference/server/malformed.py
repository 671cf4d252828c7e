"""Requests that are wrong, in more ways than anyone would think of: each kind makes them at random."""

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CANARY = "canary-prompt-8231"
CHAT, COMPLETION, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = [{"role": "user", "content": CANARY}]


@dataclass
class Wrong:
    """A request, and what is to be said of it."""

    content: bytes
    param: str | None = None
    """The field that the error names; None: any, or none."""
    path: str = CHAT
    method: str = "POST"
    status: int = 400
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


KINDS: dict[str, Callable[[random.Random], Wrong]] = {}


def kind(make: Callable[[random.Random], Wrong]) -> Callable[[random.Random], Wrong]:
    KINDS[make.__name__] = make
    return make


def chat(param: str | None = None, /, **fields: Any) -> Wrong:
    return Wrong(json.dumps({"messages": MESSAGES, "max_tokens": 1, **fields}).encode(), param)


def completion(param: str | None = None, /, **fields: Any) -> Wrong:
    return Wrong(json.dumps({"prompt": CANARY, "max_tokens": 1, **fields}).encode(), param, COMPLETION)


def any_route(rng: random.Random) -> str:
    return rng.choice([CHAT, COMPLETION, RESPONSES, "/tokenize", "/detokenize"])


def raw(text: str | bytes, param: str | None = None, *, path: str = CHAT, status: int = 400) -> Wrong:
    return Wrong(text if isinstance(text, bytes) else text.encode(), param, path, status=status)


def word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 12)))


def other_than(rng: random.Random, *kinds: type) -> Any:
    """A value of another type."""
    values = [True, 1.5, "text", [], {}, [1], {"a": 1}, ["text"], -7]
    return rng.choice([value for value in values if type(value) not in kinds])


WRONG_TYPES = {
    "temperature": (float, int),
    "top_p": (float, int),
    "top_k": (int,),
    "min_p": (float, int),
    "repetition_penalty": (float, int),
    "presence_penalty": (float, int),
    "frequency_penalty": (float, int),
    "max_tokens": (int,),
    "n": (int,),
    "seed": (int,),
    "stop": (str, list),
    "stop_token_ids": (list,),
    "ignore_eos": (bool,),
    "logit_bias": (dict,),
    "stream": (bool,),
    "stream_options": (dict,),
    "model": (str,),
    "messages": (list,),
    "logprobs": (bool,),
    "response_format": (dict,),
    "tools": (list,),
}
OUT_OF_BOUNDS = {
    "temperature": [-0.1, 2.1, 1e300],
    "top_p": [0, -1, 1.01],
    "top_k": [-2, 2**40],
    "min_p": [-0.5, 1.5],
    "repetition_penalty": [0, -1, 11],
    "presence_penalty": [-2.1, 3],
    "frequency_penalty": [-3, 2.1],
    "max_tokens": [0, -1, 2**31, 10**6],
    "max_completion_tokens": [0, -5, 2**40],
    "n": [0, -1, 129, 2**70],
    "seed": [2**63, -(2**63) - 1],
    "top_logprobs": [-1, 21],
    "stop": ["", [""], ["x"] * 17, "x" * 300],
    "stop_token_ids": [[-1], [2**40], [0] * 17],
    "logit_bias": [{"1": 101}, {"1": -101}, {"-1": 1}, {"x": 1}, {"99999999999999": 1}],
    "messages": [[]],
}
for _name, _types in WRONG_TYPES.items():
    KINDS[f"{_name}_of_a_wrong_type"] = lambda rng, name=_name, types=_types: chat(
        name, **{name: other_than(rng, *types)}
    )
for _name, _values in OUT_OF_BOUNDS.items():
    KINDS[f"{_name}_out_of_bounds"] = lambda rng, name=_name, values=_values: chat(
        None, **({"logprobs": True} if name == "top_logprobs" else {}), **{name: rng.choice(values)}
    )


@kind
def no_json(rng):
    return raw(
        rng.choice(["", "{", "nope", "{'a': 1}", '{"a" 1}', "}{", "[1,", '"', "{,}", '{"a":1}x']), path=any_route(rng)
    )


@kind
def no_object(rng):
    return raw(rng.choice(["[]", "1", '"text"', "null", "true", "1.5"]), path=any_route(rng))


@kind
def no_utf8(rng):
    return raw(b'{"prompt": "' + bytes([rng.choice([0x80, 0xFF, 0xC0, 0xED])]) + b'"}', path=any_route(rng))


@kind
def other_encodings(rng):
    return raw('{"prompt": "x"}'.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])), path=any_route(rng))


@kind
def half_a_surrogate_pair(rng):
    half = rng.choice(["\\ud800", "\\udfff", "\\udc00x", "a\\ud83d"])
    return raw(f'{{"messages": [{{"role": "user", "content": "{half}"}}]}}', "messages[0].content")


@kind
def half_a_surrogate_pair_in_a_prompt(rng):
    return raw('{"prompt": "\\ud800"}', "prompt", path=rng.choice([COMPLETION, "/tokenize"]))


@kind
def half_a_surrogate_pair_in_a_name(rng):
    return raw('{"prompt": "x", "\\udfff": 1}', path=any_route(rng))


@kind
def not_a_number(rng):
    name, value = (
        rng.choice(["temperature", "top_p", "n", "seed"]),
        rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e999"]),
    )
    return raw(f'{{"prompt": "x", "{name}": {value}}}', name, path=COMPLETION)


@kind
def huge_whole_number(rng):
    name = rng.choice(["temperature", "n", "seed", "max_tokens", "top_k"])
    return raw(
        f'{{"prompt": "x", "{name}": {"-" * rng.randint(0, 1)}{"9" * rng.choice([40, 400, 5000, 50000])}}}',
        name,
        path=COMPLETION,
    )


@kind
def nested_deeply(rng):
    depth, (left, right) = rng.choice([70, 900, 5000, 20_000]), rng.choice([("[", "]"), ('{"a":', "}")])
    return raw(f'{{"metadata": {left * depth}1{right * depth}}}', path=any_route(rng))


@kind
def nested_and_not_closed(rng):
    return raw(rng.choice(["[", '{"a":']) * rng.choice([100, 5000, 20_000]), path=any_route(rng))


@kind
def twice_the_same_key(rng):
    name = rng.choice(["temperature", "prompt", "n"])
    return raw(f'{{"prompt": "x", "{name}": 1, "{name}": 1}}', name, path=COMPLETION)


@kind
def twice_the_same_key_within(rng):
    return raw('{"messages": [{"role": "user", "content": "x", "role": "system"}]}', "role")


@kind
def a_boolean_for_a_number(rng):
    name = rng.choice(["n", "seed", "max_tokens", "top_k", "temperature", "top_p", "min_p"])
    return completion(name, **{name: rng.choice([True, False])})


@kind
def a_number_for_a_boolean(rng):
    name = rng.choice(["stream", "ignore_eos"])
    return completion(name, **{name: rng.choice([0, 1, 0.0, "true"])})


@kind
def a_fraction_for_a_whole_number(rng):
    name = rng.choice(["n", "seed", "max_tokens", "top_k"])
    return completion(name, **{name: rng.choice([1.5, 0.1, 1e300])})


@kind
def a_text_for_a_number(rng):
    name = rng.choice(["n", "temperature", "max_tokens"])
    return completion(name, **{name: rng.choice(["1", "", "auto", CANARY])})


@kind
def unknown_field(rng):
    name = f"{word(rng)}_{word(rng)}"
    return rng.choice([chat, completion])(name, **{name: rng.choice([1, None, "x", []])})


@kind
def misspelt_field(rng):
    name = rng.choice(["temprature", "max_token", "topp", "straem", "Prompt", "stop "])
    return completion(name, **{name: 1})


@kind
def unknown_field_within(rng):
    return chat("stream_options.usage", stream=True, stream_options={"usage": True})


@kind
def field_of_a_hostile_name(rng):
    name = rng.choice(
        ["", "\n", "\x1b[31m", "a" * 100_000, "é" * 50, "__proto__", "${jndi:ldap://x}", "\u2028", "{0}", "%s"]
    )
    return completion(None, **{name: 1})


@kind
def nothing_at_all(rng):
    return raw("{}", path=rng.choice([CHAT, COMPLETION, "/detokenize", "/tokenize"]))


@kind
def null_for_what_is_needed(rng):
    return rng.choice([chat("messages", messages=None), completion("prompt", prompt=None)])


@kind
def no_such_model(rng):
    wrong = completion("model", model=rng.choice([word(rng), "", "a\nb", "../x", "é"]))
    wrong.status = 404
    return wrong


@kind
def no_such_model_to_look_at(rng):
    return Wrong(b"", None, f"/v1/models/{word(rng)}", "GET", 404)


@kind
def empty_prompt_of_tokens(rng):
    return completion(None, prompt=rng.choice([[], [[]], [[], []]]))


@kind
def tokens_beyond_the_vocabulary(rng):
    return completion("prompt", prompt=rng.choice([[320], [2**31 - 1], [[1, 400]], [1, 2, 5000]]))


@kind
def tokens_that_are_none(rng):
    return completion(None, prompt=rng.choice([[-1], [1.5], [True], [None], [{"a": 1}], [[1, "x"]], [[[1]]], [1, "x"]]))


@kind
def prompt_of_a_wrong_type(rng):
    return completion("prompt", prompt=rng.choice([1, 1.5, True, {"text": "x"}]))


@kind
def too_many_prompts(rng):
    return completion(None, prompt=["x"] * rng.choice([5, 100, 5000]))


@kind
def too_many_answers(rng):
    return completion("n", n=rng.choice([5, 100, 128]))


@kind
def too_many_answers_over_all_prompts(rng):
    return completion("n", n=3, prompt=["a", "b"])


@kind
def prompt_too_long(rng):
    return completion("prompt", prompt=rng.choice(["0 " * 5000, [5] * 200]))


@kind
def conversation_too_long(rng):
    return chat(None, messages=[{"role": "user", "content": CANARY * 300}])


@kind
def answer_too_long(rng):
    return completion("max_tokens", max_tokens=rng.choice([128, 5000, 2**30]))


@kind
def too_many_messages(rng):
    return chat("messages", messages=MESSAGES * 2049)


@kind
def body_too_long(rng):
    return raw(b'{"prompt": "' + b"x" * 2**17 + b'"}', path=any_route(rng), status=413)


@kind
def body_said_to_be_too_long(rng):
    wrong = raw("{}", path=any_route(rng), status=413)
    wrong.headers["content-length"] = str(2**17 + 1)
    wrong.content = b" " * (2**17 + 1)
    return wrong


@kind
def another_content_type(rng):
    kind_ = rng.choice(
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
            "json",
            "application/jsonx",
        ]
    )
    return Wrong(b'{"prompt": "x"}', None, any_route(rng), status=415, headers={"content-type": kind_})


@kind
def compressed(rng):
    headers = {"content-type": "application/json", "content-encoding": rng.choice(["gzip", "br", "zstd", "deflate"])}
    return Wrong(b"\x1f\x8b\x08", None, any_route(rng), status=415, headers=headers)


@kind
def another_method(rng):
    path, methods = rng.choice(
        [(CHAT, ["GET", "PUT", "DELETE", "PATCH"]), ("/v1/models", ["POST", "DELETE"]), ("/metrics", ["POST"])]
    )
    return Wrong(b"{}", None, path, rng.choice(methods), 405)


@kind
def no_such_route(rng):
    path = rng.choice(
        [
            "/v1",
            "/v1/",
            "/v2/models",
            "/v1/embeddings",
            "/v1/chat/completions/x",
            "/..%2f",
            "/%00",
            "/v1//models",
            "/é",
            "/.env",
        ]
    )
    return Wrong(b"{}", None, path, rng.choice(["GET", "POST"]), 404)


@kind
def message_without_a_role(rng):
    return chat("messages[0].role", messages=[{"content": "x"}])


@kind
def message_of_an_unknown_role(rng):
    role = rng.choice(["", "User", "root", "assistant ", "\n", CANARY])
    return chat("messages[0].role", messages=[{"role": role, "content": "x"}])


@kind
def role_of_a_wrong_type(rng):
    return chat("messages[0].role", messages=[{"role": other_than(rng, str), "content": "x"}])


@kind
def message_without_content(rng):
    return chat(None, messages=[{"role": "user", **rng.choice([{}, {"content": None}])}])


@kind
def content_of_a_wrong_type(rng):
    return chat(None, messages=[{"role": "user", "content": rng.choice([1, 1.5, True, {"text": "x"}, {}])}])


@kind
def part_of_an_unknown_kind(rng):
    part = rng.choice(
        [
            {"type": "picture"},
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}},
            {},
            "x",
            1,
            {"type": 1},
        ]
    )
    return chat(None, messages=[{"role": "user", "content": [part]}])


@kind
def message_that_is_none(rng):
    return chat("messages[1]", messages=[*MESSAGES, rng.choice(["x", 1, [], True])])


@kind
def message_with_an_unknown_field(rng):
    return chat("messages[0].contents", messages=[{"role": "user", "content": "x", "contents": "x"}])


@kind
def top_logprobs_without_logprobs(rng):
    return chat("top_logprobs", top_logprobs=rng.randint(0, 20))


@kind
def stream_options_without_a_stream(rng):
    return rng.choice([chat, completion])("stream_options", stream_options={"include_usage": True})


@kind
def too_many_log_probabilities(rng):
    return completion("logprobs", logprobs=rng.choice([21, 100, -1, 2**40]))


@kind
def what_is_not_served(rng):
    name, value = rng.choice(
        [
            ("min_tokens", 5),
            ("best_of", 4),
            ("use_beam_search", True),
            ("prompt_logprobs", 1),
            ("bad_words", ["x"]),
            ("allowed_token_ids", [1]),
            ("logits_processors", ["os.system"]),
            ("chat_template", "{{ 1 }}"),
            ("chat_template_kwargs", {"a": 1}),
            ("structured_outputs", {"regex": ".*"}),
            ("skip_special_tokens", False),
            ("return_token_ids", True),
            ("truncate_prompt_tokens", 5),
        ]
    )
    return rng.choice([chat, completion])(name, **{name: value})


@kind
def what_completions_do_not_serve(rng):
    name, value = rng.choice([("echo", True), ("suffix", "x"), ("response_format", {"type": "json_object"})])
    return completion(name, **{name: value})


@kind
def other_answers_than_text(rng):
    name, value = rng.choice([("modalities", ["text", "audio"]), ("audio", {"voice": "x"}), ("web_search_options", {})])
    return chat(name, **{name: value})


@kind
def too_many_biases(rng):
    return completion("logit_bias", logit_bias={str(token): 1 for token in range(1025)})


@kind
def bias_of_a_token_beyond_the_vocabulary(rng):
    return completion("logit_bias", logit_bias={str(rng.randint(320, 10**9)): 1})


@kind
def bias_of_a_wrong_type(rng):
    return completion("logit_bias.5", logit_bias={"5": rng.choice(["x", None, [], True])})


@kind
def stop_token_beyond_the_vocabulary(rng):
    return completion("stop_token_ids", stop_token_ids=[rng.randint(320, 2**30)])


@kind
def stop_of_wrong_parts(rng):
    return completion("stop[1]", stop=["x", rng.choice([1, None, [], True, "y" * 257])])


@kind
def both_a_prompt_and_messages(rng):
    return Wrong(json.dumps({"prompt": "x", "messages": MESSAGES}).encode(), "prompt", "/tokenize")


@kind
def tokens_to_spell_out_that_are_none(rng):
    tokens = rng.choice([["x"], [-1], [1.5], "12", [[1]], [2**40], [True]])
    return Wrong(json.dumps({"tokens": tokens}).encode(), None, "/detokenize")


@kind
def tokens_to_spell_out_beyond_the_vocabulary(rng):
    return Wrong(json.dumps({"tokens": [1, rng.randint(320, 2**31 - 1)]}).encode(), "tokens", "/detokenize")


@kind
def random_bytes(rng):
    return raw(rng.randbytes(rng.randint(1, 300)), path=any_route(rng))


@kind
def a_right_request_damaged(rng):
    content = bytearray(json.dumps({"messages": MESSAGES, "max_tokens": 1, "temperature": 0.5}).encode())
    # Outside of the texts, where any other byte may be right.
    content[rng.choice([0, 1, content.index(b":"), len(content) - 1])] = rng.choice(b"\x00\x01;?\xff")
    return raw(bytes(content))


@kind
def a_right_request_cut(rng):
    content = json.dumps({"messages": MESSAGES, "max_tokens": 1}).encode()
    return raw(content[: rng.randrange(len(content))])
