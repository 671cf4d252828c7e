"""A model of this machine as the one that answers."""

import jax
import pytest

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import train_tokenizer
from llama_jax.inference.completion import complete, encode_prompt, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.instruct.generators.local import LocalModel, user_opening
from llama_jax.instruct.generators.requests import Request
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

TEXTS = [f"Document {number} says that twice it is {2 * number}." for number in range(99)]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
SIZES = {"width": 32, "mlp_width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_size": 16}
CONTEXT, ROWS = 128, 2


@pytest.fixture(scope="module")
def opened() -> OpenModel:
    tokenizer = train_tokenizer(TEXTS, 300).with_chat_template(TEMPLATE)
    model = language_model(LlamaConfig(300, context_length=CONTEXT, **SIZES), ComputeConfig())
    whole = sharding.replicated(make_mesh(MeshConfig(), jax.devices()[:1]))
    params = jax.jit(model.init, out_shardings=whole)(jax.random.key(1))
    return OpenModel(model, params, {}, "here", None, tokenizer=tokenizer)


def answers(opened: OpenModel, requests: list[Request], stopping=lambda: False) -> dict[int, tuple]:
    return dict(LocalModel(opened, "f", ROWS).answers(requests, stopping, lambda *tokens: None))


def test_an_answer_is_what_the_model_writes_whoever_is_beside_it(opened: OpenModel) -> None:
    prompts = ["Document 7 says that twice it is", "twice", "Document 1 says"]
    requests = [Request(text, 20, presence_penalty=2.0 * n, seed=n) for n, text in enumerate(prompts)]
    found = answers(opened, requests)
    assert found[1] == answers(opened, requests[1:])[0] == answers(opened, requests[1:2])[0]
    by = writer(opened.model, opened.params, opened.tokenizer)
    for number, (text, request) in enumerate(zip(prompts, requests, strict=True)):
        ids = encode_prompt(opened.tokenizer, text)
        sampling = SamplingConfig(20, 1.0, presence_penalty=request.presence_penalty)
        (expected,) = complete(by, [ids], sampling, seed=number)
        assert found[number] == (expected.text, expected.finish, len(ids), len(expected.ids))


def test_an_answer_ends_before_what_stops_it(opened: OpenModel) -> None:
    (whole,) = answers(opened, [Request("Document 7", 20, 0.0)]).values()
    stop = whole.text[3:5]
    (cut,) = answers(opened, [Request("Document 7", 20, 0.0, stop=("never", stop))]).values()
    assert (cut.text, cut.finish) == (whole.text[: whole.text.index(stop)], "stop")


def test_what_the_context_has_no_room_for(opened: OpenModel) -> None:
    long = "Document 7 says that twice it is 14. " * 9
    ends = (long[start:] for start in range(len(long)))
    kept = next(text for text in ends if len(encode_prompt(opened.tokenizer, text)) == CONTEXT - 16)
    found = answers(opened, [Request(long, 20), Request(kept, 500, 0.0)])
    assert (found[0].text, found[0].finish) == ("", "too_long")
    assert found[1].tokens_out <= 16
    assert found[1].finish in ("length", "stop")


def test_messages_go_through_the_template_whose_opening_is_known(opened: OpenModel) -> None:
    assert user_opening(opened.tokenizer) == "<user>"
    said = ({"role": "user", "content": "twice"},)
    chat, text = answers(opened, [Request(said, 20, 0.0), Request("<user>twice</s><bot>", 20, 0.0)]).values()
    assert chat == text


def test_nothing_is_begun_once_it_is_to_end(opened: OpenModel) -> None:
    assert answers(opened, [Request("twice", 20)], stopping=lambda: True) == {}
