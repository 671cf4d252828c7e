"""Scores are the log-probabilities of exactly the continuation, whatever the batch, the padding and the mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.evals.scoring import Scorer, encode_pair, padded_length, request_of

RANDOM = np.random.default_rng(0)


def random_request(context: int, continuation: int):
    return request_of(*(RANDOM.integers(0, 300, size).tolist() for size in (context, continuation)))


REQUESTS = [random_request(int(RANDOM.integers(18, 38)), int(RANDOM.integers(1, 10))) for _ in range(20)]


def scored(small, params, requests, *, rows=8, context_length=64):
    scorer = Scorer(small.model, params, rows=rows, context_length=context_length)
    found = dict(scorer.scores(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))], scorer


@functools.partial(jax.jit, static_argnums=0)
def every_logprob(model, params, tokens):
    return jax.nn.log_softmax(model.unembed(model.head(params), model.hidden(params, tokens)))


def logprobs(small, params, tokens):
    """Of each token but the first, by one plain forward pass, and the most likely tokens."""
    read = np.zeros((1, 64), np.int32)
    read[0, : len(tokens) - 1] = tokens[:-1]
    every = np.asarray(every_logprob(small.model, params, read))[0, : len(tokens) - 1]
    return every[np.arange(len(every)), tokens[1:]], every.argmax(-1)


def test_a_score_is_the_sum_over_the_continuation(small, one_device) -> None:
    scores, _ = scored(small, one_device, REQUESTS)
    for request, score in zip(REQUESTS, scores, strict=True):
        each, _ = logprobs(small, one_device, np.concatenate(request))
        size = len(request.continuation)
        assert score.logprob == pytest.approx(float(each[-size:].sum()), rel=1e-5)
        assert (score.tokens, score.truncated) == (size, False)


def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary_a_token(small, one_device) -> None:
    params = one_device | {"lm_head": jax.tree.map(jnp.zeros_like, one_device["lm_head"])}
    (long, lowest), _ = scored(small, params, [request_of([5], [7, 8, 9]), request_of([5, 6], [0])])
    assert long.logprob == pytest.approx(-3 * math.log(300), rel=1e-6)
    assert (long.greedy, lowest.greedy) == (False, True)  # the lowest id is taken among equals


def test_greedy_means_that_every_token_is_the_most_likely(small, one_device) -> None:
    tokens = [3, 4]
    for _ in range(3):
        tokens.append(int(logprobs(small, one_device, np.array([*tokens, 0]))[1][-1]))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 300]
    also_wrong = [*tokens[:3], (tokens[3] + 1) % 300, tokens[4]]
    requests = [request_of(t[:2], t[2:]) for t in (tokens, wrong, also_wrong)]
    assert [score.greedy for score in scored(small, one_device, requests)[0]] == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 4), (1, 8), (1, 2, 4)])
def test_mesh_and_batch_change_nothing(shape, small, one_device) -> None:
    expected, _ = scored(small, one_device, REQUESTS)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
        found, _ = scored(small, small.params(mesh), REQUESTS, rows=3)
    assert [score.logprob for score in found] == pytest.approx([score.logprob for score in expected], rel=1e-6)
    assert [score[1:] for score in found] == [score[1:] for score in expected]


def test_what_does_not_fit_loses_its_beginning_and_is_said(small, one_device) -> None:
    fits, longer, no_context = random_request(10, 7), random_request(30, 6), random_request(3, 20)
    scores, _ = scored(small, one_device, [fits, longer, no_context], context_length=16)
    assert [score.truncated for score in scores] == [False, True, True]
    assert [score.tokens for score in scores] == [7, 6, 16]
    for request, score in zip((longer, no_context), scores[1:], strict=True):
        each, _ = logprobs(small, one_device, np.concatenate(request)[-17:])
        assert score.logprob == pytest.approx(float(each[-score.tokens :].sum()), rel=1e-5)


def test_requests_that_differ_in_the_last_token_are_read_once(small, one_device) -> None:
    context, letters = RANDOM.integers(0, 300, 20).tolist(), range(100, 110)
    requests = [request_of(context, [letter]) for letter in letters]
    scorer = Scorer(small.model, one_device, rows=1, context_length=64)
    assert [len(batch) for batch, _ in scorer._batches(requests)] == [1]
    scores, _ = scored(small, one_device, requests)
    alone = [scored(small, one_device, [request])[0][0].logprob for request in requests]
    assert [score.logprob for score in scores] == pytest.approx(alone, rel=1e-5)


def test_lengths_are_padded_to_few(small, one_device) -> None:
    assert [padded_length(n, 100) for n in (1, 16, 17, 25, 33, 49, 65, 97, 100)] == [
        16,
        16,
        24,
        32,
        48,
        64,
        96,
        100,
        100,
    ]
    many = [random_request(length, 3) for length in range(1, 30)]
    _, scorer = scored(small, one_device, many)
    assert scorer.programs == {(16, 4), (24, 4), (32, 4)}


def test_both_texts_are_encoded_together_and_cut_where_the_context_ends(small) -> None:
    tokenizer = small.tokenizer
    context, continuation = encode_pair(tokenizer, "Document 7 says", " that 7 times")
    assert [*context, *continuation] == tokenizer.encode("Document 7 says that 7 times", bos=True)
    assert list(context) == tokenizer.encode("Document 7 says", bos=True)
    # Spaces at the end of the context belong to the first word of the continuation.
    moved = encode_pair(tokenizer, "Document 7 says ", "that 7 times")
    assert [list(part) for part in moved] == [list(context), list(continuation)]


def test_an_empty_context_is_bos(small) -> None:
    context, continuation = encode_pair(small.tokenizer, "", "Document 7")
    assert list(context) == [small.tokenizer.bos_id]
    assert list(continuation) == small.tokenizer.encode("Document 7")


def test_a_continuation_that_grows_into_the_last_token_is_still_scored(small) -> None:
    tokenizer = small.tokenizer
    whole = tokenizer.encode("Document", bos=True)
    assert len(tokenizer.encode("Documen", bos=True)) >= len(whole)
    context, continuation = encode_pair(tokenizer, "Documen", "t")
    assert list(continuation) == whole[-1:]
    assert len(context) == len(whole) - 1
