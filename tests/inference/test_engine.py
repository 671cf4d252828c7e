"""The engine: answers are those of the full forward pass, alone or among others, and what a slot held is used again."""

import jax
import jax.numpy as jnp
import pytest

from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.programs import decoding_params
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model

MODEL = language_model(SIZES["tiny"], ComputeConfig())
PROMPTS = [[1, 40, 99], [1], [1, 7, 300, 301, 5, 6, 8, 9, 10, 11], [1, *range(100, 130)]]
GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def params():
    # Large weights make the choice depend on the whole prompt.
    return jax.tree.map(lambda leaf: leaf * 3, jax.jit(MODEL.init)(jax.random.key(5)))


@pytest.fixture(scope="module")
def engine(params) -> Engine:
    return Engine(MODEL, decoding_params(MODEL, params), slots=4, length=96)


@pytest.fixture(scope="module")
def expected(params) -> list[list[int]]:
    @jax.jit
    def logits(tokens):
        return MODEL.unembed(MODEL.head(params), MODEL.hidden(params, tokens))[0]

    answers = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(GREEDY.max_new_tokens):
            padded = jnp.asarray([tokens + [0] * (48 - len(tokens))])
            tokens.append(int(jnp.argmax(logits(padded)[len(tokens) - 1])))
        answers.append(tokens[len(prompt) :])
    return answers


def ids(answers) -> list[list[int]]:
    return [[token.id for token in answer] for answer in answers]


def test_answers_are_those_of_the_full_forward_pass(engine, expected) -> None:
    answers = engine.run([Request(prompt, GREEDY) for prompt in PROMPTS])
    assert ids(answers) == expected
    assert len({tuple(answer) for answer in expected}) == 4
    assert [[token.finish for token in answer] for answer in answers] == [[None] * 11 + ["length"]] * 4
