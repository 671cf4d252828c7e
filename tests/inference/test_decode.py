"""Generation equals choosing the most likely token of a full forward pass, again and again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.decode import Rules, decoding_params, generate
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model

MODEL = language_model(SIZES["tiny"], ComputeConfig())
GREEDY = Rules(SamplingConfig(max_new_tokens=12, temperature=0.0))
PROMPTS = [[1, 40, 99], [1], [1, 7, 300, 301, 5, 6, 8, 9, 10, 11]]


@pytest.fixture(scope="module")
def params():
    # Large weights make the choice depend on the whole prompt.
    return jax.tree.map(lambda leaf: leaf * 3, jax.jit(MODEL.init)(jax.random.key(5)))


@pytest.fixture(scope="module")
def expected(params) -> list[list[int]]:
    @jax.jit
    def logits(tokens):
        return MODEL.unembed(MODEL.head(params), MODEL.hidden(params, tokens))[0]

    answers = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(GREEDY.sampling.max_new_tokens):
            padded = jnp.asarray([tokens + [0] * (32 - len(tokens))])
            tokens.append(int(jnp.argmax(logits(padded)[len(tokens) - 1])))
        answers.append(tokens[len(prompt) :])
    return answers


def test_prompts_of_different_lengths_continue_as_the_full_forward_pass_does(params, expected) -> None:
    assert generate(MODEL, decoding_params(MODEL, params), PROMPTS, GREEDY) == expected
    assert len({tuple(answer) for answer in expected}) == 3


def test_streaming_gives_the_same_answers_piece_by_piece(params, expected) -> None:
    pieces = []
    answers = generate(MODEL, decoding_params(MODEL, params), PROMPTS, GREEDY, stream=pieces.append)
    assert answers == expected
    assert [len(piece[0]) for piece in pieces] == [8, 12]
    assert pieces[0] == [answer[:8] for answer in expected]


def test_an_answer_ends_with_the_end_token_and_others_go_on(params, expected) -> None:
    end = expected[0][3]
    answers = generate(MODEL, decoding_params(MODEL, params), PROMPTS, Rules(GREEDY.sampling, (end,)))
    for answer, whole in zip(answers, expected, strict=True):
        stop = whole.index(end) + 1 if end in whole else len(whole)
        assert answer == whole[:stop]
    assert len(answers[0]) <= 4


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 4),
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 8), (2, 2, 1, 2), (1, 4, 1, 2, (2, 2)))),
    ],
)
def test_answers_are_the_same_on_any_mesh(params, expected, shape) -> None:
    mesh = make_mesh(MeshConfig(*shape))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings_of(mesh, MODEL.shapes(), MODEL.axes))
        assert generate(MODEL, decoding_params(MODEL, placed), PROMPTS, GREEDY) == expected


def test_sampling_depends_on_the_seed_only(params) -> None:
    rules = Rules(SamplingConfig(max_new_tokens=12, temperature=1.0))
    decoding = decoding_params(MODEL, params)
    first, again, other = (generate(MODEL, decoding, PROMPTS, rules, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(("prompts", "message"), [([[]], "has no token"), ([[1] * 501], "exceed the model's context")])
def test_prompts_that_cannot_be_continued_are_refused(params, prompts, message) -> None:
    with pytest.raises(UserError, match=message):
        generate(MODEL, decoding_params(MODEL, params), prompts, GREEDY)


def test_decoding_parameters_are_the_layers_one_by_one(params) -> None:
    decoding = decoding_params(MODEL, params)
    np.testing.assert_array_equal(
        decoding["layers_1"]["mlp"]["up_proj"]["kernel"], params["layers"]["mlp"]["up_proj"]["kernel"][1]
    )
