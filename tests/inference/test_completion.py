"""What is completed is what is decoded, as ids and as the text that they add to the prompt."""

import gc
import weakref

import jax
import pytest

from llama_jax import inference
from llama_jax.core import sharding, tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import train_tokenizer
from llama_jax.inference import completion
from llama_jax.inference.completion import complete, encode_prompt, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

TOKENIZER = train_tokenizer([f"Document {number} says that twice it is {2 * number}." for number in range(99)], 300)
SIZES = {"width": 32, "mlp_width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_size": 16}
MODEL = language_model(LlamaConfig(300, **SIZES), ComputeConfig())
GREEDY = SamplingConfig(6, temperature=0.0)
TEXTS = ["Document 7 says", "twice"]
PROMPTS = [encode_prompt(TOKENIZER, text) for text in TEXTS]


@pytest.fixture(scope="module")
def params():
    whole = sharding.replicated(make_mesh(MeshConfig(), jax.devices()[:1]))
    return jax.jit(MODEL.init, out_shardings=whole)(jax.random.key(1))


@pytest.mark.slow
def test_a_completion_is_what_decoding_adds(params) -> None:
    found = complete(writer(MODEL, params, TOKENIZER), PROMPTS, GREEDY)
    for prompt, each in zip(PROMPTS, found, strict=True):
        ids = jax.numpy.asarray([prompt + each.ids])
        expected = jax.numpy.argmax(MODEL.logits(params, ids), axis=-1)[0, len(prompt) - 1 : -1]
        assert each.ids == expected.tolist() and each.finish == "length"
    for prompt, each in zip(PROMPTS, found, strict=True):
        assert TOKENIZER.decode(prompt) + each.text == TOKENIZER.decode(prompt + each.ids)


def test_an_answer_ends_with_a_stop_id_of_the_writer(params) -> None:
    (whole, _) = complete(writer(MODEL, params, TOKENIZER), PROMPTS, GREEDY)
    (cut, _) = complete(writer(MODEL, params, TOKENIZER, (whole.ids[2],)), PROMPTS, GREEDY)
    assert cut.ids == whole.ids[: whole.ids.index(whole.ids[2]) + 1]


@pytest.mark.slow
def test_from_python_a_text_gives_a_text_and_a_list_a_list(params) -> None:
    settings = {"max_new_tokens": 6, "temperature": 0.0}
    texts = inference.generate(MODEL, params, TOKENIZER, TEXTS, **settings)
    assert texts == [each.text for each in complete(writer(MODEL, params, TOKENIZER), PROMPTS, GREEDY)]
    assert inference.generate(MODEL, params, TOKENIZER, TEXTS[0], **settings) == texts[0]
    drawn = [inference.generate(MODEL, params, TOKENIZER, TEXTS[0], seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_unknown_setting_is_refused(params) -> None:
    with pytest.raises(TypeError, match="temprature"):
        inference.generate(MODEL, params, TOKENIZER, "twice", temprature=0.0)


def test_the_parameters_of_the_last_call_are_not_copied_again(params, monkeypatch) -> None:
    copies = []
    make = completion.decoding_params

    def kept(*given, **options):
        copies.append(make(*given, **options))
        return copies[-1]

    monkeypatch.setattr(completion, "decoding_params", kept)
    model = language_model(LlamaConfig(300, **SIZES), ComputeConfig())
    other = jax.tree.map(lambda leaf: leaf * 1.5, params)

    def ask(params) -> str:
        return inference.generate(model, params, TOKENIZER, "twice", max_new_tokens=6, temperature=0.0)

    first = ask(params)
    assert ask(dict(params)) == first and len(copies) == 1  # another dictionary of the same arrays
    assert ask(other) != first and len(copies) == 2
    (table,) = [weakref.ref(leaf) for path, leaf in tree.flatten(copies.pop()).items() if path == "embedding/table"]
    del other
    gc.collect()
    assert table() is None
    assert ask(params) == first and len(copies) == 2
