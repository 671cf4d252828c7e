"""Answers of a batch are those of each prompt alone, cut where they should end."""

import jax
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.evals.answers import Answerer
from llama_jax.inference.config import SamplingConfig

PROMPTS = ["Document 7", "Document 11 says that 11 times", "no", "and no more. Document 3 says", "times two is"]
GREEDY = SamplingConfig(6, temperature=0.0)


def answers(small, params, prompts, stops=(), rows=2):
    answerer = Answerer(small.model, params, small.tokenizer, rows=rows, context_length=64)
    ids = [small.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    found = dict(answerer.answers(ids, GREEDY, stops))
    return [found[number] for number in range(len(prompts))]


@pytest.mark.slow
def test_batches_and_meshes_change_no_answer(small, one_device) -> None:
    expected = [answers(small, one_device, [prompt])[0] for prompt in PROMPTS]
    assert answers(small, one_device, PROMPTS) == expected
    assert len({answer.text for answer in expected}) > 1
    mesh = make_mesh(MeshConfig(), jax.devices()[:4])
    with jax.set_mesh(mesh):
        assert answers(small, small.params(mesh), PROMPTS) == expected


def test_an_answer_ends_before_the_first_stop(small, one_device) -> None:
    (whole,) = answers(small, one_device, PROMPTS[:1])
    early, late = whole.text[2:4], whole.text[3:6]
    assert answers(small, one_device, PROMPTS[:1], [late, "", early])[0].text == whole.text[: whole.text.find(early)]


def test_a_prompt_that_does_not_fit_loses_its_beginning(small, one_device) -> None:
    answerer = Answerer(small.model, one_device, small.tokenizer, rows=1, context_length=16)
    ids = list(range(10, 40))
    found = [next(answerer.answers([prompt], GREEDY, []))[1] for prompt in (ids, ids[-10:])]
    assert [answer.truncated for answer in found] == [True, False]
    assert found[0].text == found[1].text
    with pytest.raises(UserError, match="--max_new_tokens 16: leaves no room for a prompt"):
        next(answerer.answers([ids], SamplingConfig(16), []))
