"""Choosing tokens: filters and penalties by hand or by a sort, log-probabilities, frequencies, rows by themselves."""

import jax
import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.requests import Request
from llama_jax.inference.sampling import Choice, History, Rules, choose, filtered, rules_of

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
ROWS, VOCAB_SIZE = 3000, 40
LOGITS = np.full(VOCAB_SIZE, -1e30, np.float32)
LOGITS[:4] = np.log(PROBABILITIES)
RANDOM = np.random.default_rng(0)
CHOOSE = jax.jit(choose)
FILTERED = jax.jit(filtered)


def rules(requests: list[Request], rows: int = ROWS) -> Rules:
    """Those of the requests, and of the last one again and again."""
    own = [rules_of(request, VOCAB_SIZE) for request in requests]
    padding = rows - len(own)
    return jax.tree.map(lambda *leaves: np.stack([*leaves, *[leaves[-1]] * padding]), *own)


def padded(rows) -> np.ndarray:
    rows = np.asarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], ROWS - len(rows), axis=0)])


def request(*, prompt=(0,), temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, **rest) -> Request:
    penalties = {name: rest.pop(name) for name in list(rest) if name.endswith("penalty")}
    sampling = SamplingConfig(8, temperature, top_k, top_p, min_p, **penalties)
    return Request(prompt, sampling, **rest)


def chosen(logits, requests, tokens=(0, 0, 0, 0), prompt_length=4, mask=0, index=0) -> Choice:
    """What is chosen in each row; all of one shape, so that there is one program."""
    tokens = padded(np.tile(np.array(tokens, np.int32), (len(logits), 1)))
    history = History(tokens, np.full(ROWS, prompt_length, np.int32), np.full(ROWS, 4, np.int32))
    masks = np.tile(np.array([mask, 0], np.uint32), (ROWS, 1))
    wanted = requests if isinstance(requests, Rules) else rules(requests)
    found = CHOOSE(padded(logits), wanted, history, masks, np.full(ROWS, index, np.int32))
    return jax.tree.map(lambda array: np.asarray(array)[: len(logits)], found)


def kept(logits: np.ndarray, wanted: list[Request]) -> np.ndarray:
    scaled = logits - logits.max(axis=1, keepdims=True)
    return np.isfinite(FILTERED(scaled, rules(wanted, len(logits))))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.8001}, [0, 1, 2]),
        ({"top_p": 0.01}, [0]),
        ({"top_k": 3, "top_p": 0.8}, [0, 1]),
        ({"min_p": 0.29}, [0, 1, 2]),
        ({"min_p": 0.31}, [0, 1]),
        ({"min_p": 1.0}, [0]),
    ],
)
def test_filters_keep_the_tokens_computed_by_hand(changes: dict, expected: list[int]) -> None:
    (found,) = kept(LOGITS[None, :4], [request(**changes)])
    assert np.flatnonzero(found).tolist() == expected


def test_filters_keep_what_sorting_keeps_ties_included() -> None:
    logits = np.round(RANDOM.normal(0, 3, (64, 700)), 1).astype(np.float32)  # full of ties
    top_k, top_p = RANDOM.integers(1, 300, 64), RANDOM.uniform(0.05, 0.999, 64)
    wanted = [request(top_k=int(k), top_p=float(p)) for k, p in zip(top_k, top_p, strict=True)]
    found = kept(logits, wanted)
    for row, k, p, keeps in zip(
        (logits - logits.max(axis=1, keepdims=True)).astype(np.float64), top_k, top_p, found, strict=True
    ):
        left = row >= np.sort(row)[-k]
        likelihood = np.where(left, np.exp(row), 0) / np.exp(row[left]).sum()
        above = np.array([likelihood[row > value].sum() for value in row])
        np.testing.assert_array_equal(keeps, left & (above < p))


def test_temperature_zero_is_the_most_likely_token_and_the_lowest_of_equals() -> None:
    logits = np.zeros((2, VOCAB_SIZE), np.float32)
    logits[0, [7, 30]], logits[1, 0] = 3, 5
    assert chosen(logits, [request(temperature=0.0)]).ids.tolist() == [7, 0]


def test_frequencies_follow_the_probabilities() -> None:
    wanted = [request(), request(temperature=0.5), request(top_k=3, min_p=0.2)]
    many = jax.tree.map(lambda leaf: np.repeat(leaf, 1000, axis=0), rules(wanted, 3))
    keys = np.stack([rules_of(request(seed=3, number=number), VOCAB_SIZE).key for number in range(ROWS)])
    found = chosen(np.tile(LOGITS, (ROWS, 1)), many.replace(key=keys)).ids.reshape(3, 1000)
    for ids, expected in zip(found, (PROBABILITIES, PROBABILITIES**2, PROBABILITIES * [1, 1, 1, 0]), strict=True):
        np.testing.assert_allclose(np.bincount(ids, minlength=4) / 1000, expected / expected.sum(), atol=0.05)


def test_a_row_is_drawn_by_its_seed_numbers_and_index_alone() -> None:
    logits = RANDOM.normal(0, 1, (5, VOCAB_SIZE)).astype(np.float32)
    wanted = [request(seed=2**70 + 7, number=number, answer=2) for number in range(5)]
    together = chosen(logits, wanted, index=4).ids
    assert together[[3, 1]].tolist() == chosen(logits[[3, 1]], [wanted[3], wanted[1]], index=4).ids.tolist()
    same = np.tile(logits[:1], (40, 1))
    for change in ("seed", "number", "answer"):
        drawn = chosen(same, [request(**{change: value}) for value in range(40)]).ids.tolist()
        assert len(set(drawn)) > 10, change
    assert len({chosen(logits[:1], [wanted[0]], index=index).ids.item() for index in range(20)}) > 5


class Only:
    def allowed(self) -> np.ndarray:
        raise NotImplementedError

    def push(self, token: int) -> None:
        raise NotImplementedError


def test_penalties_and_biases_by_hand_and_a_mask() -> None:
    logits = np.full((1, VOCAB_SIZE), -1e30, np.float32)
    logits[0, :4] = [2.0, -1.0, 0.5, 0.25]
    tokens = (1, 3, 0, 0)  # the prompt has 1 and 3, the answer 0 twice
    cases = [
        ({"repetition_penalty": 2.0}, [1.0, -2.0, 0.5, 0.125]),
        ({"presence_penalty": 0.5}, [1.5, -1.0, 0.5, 0.25]),
        ({"frequency_penalty": 0.5}, [1.0, -1.0, 0.5, 0.25]),
        ({"frequency_penalty": 0.5, "logit_bias": {2: -9.0, 1: 4.0}}, [1.0, 3.0, -8.5, 0.25]),
    ]
    for settings, shaped in cases:
        likelihood = np.exp(shaped)
        for other in (1, 2, 3):
            # Of two allowed tokens, the likelihood of whichever is drawn.
            own = request(**settings, constraint=Only())
            found = chosen(logits, [own], tokens, 2, mask=1 | 1 << other)
            drawn = found.ids.item()
            assert drawn in (0, other)
            expected = np.log(likelihood[drawn] / (likelihood[0] + likelihood[other]))
            np.testing.assert_allclose(found.sampled_logprob, [expected], rtol=1e-5, atol=1e-6)


def test_log_probabilities_are_of_the_raw_distribution_and_of_the_one_sampled_from() -> None:
    rows = np.tile(LOGITS, (3, 1)) + 5
    wanted = [
        request(temperature=0.5, top_k=2, top_logprobs=3),
        request(temperature=0.0, top_logprobs=0),
        request(temperature=2.0, logit_bias={3: 100.0}, top_logprobs=1),
    ]
    found = chosen(rows, wanted)
    ids = found.ids.tolist()
    assert ids[0] in (0, 1) and ids[1:] == [0, 3]
    np.testing.assert_allclose(found.logprob, np.log(PROBABILITIES[ids]), rtol=1e-5)
    first = np.array([0.25, 0.09]) / 0.34
    np.testing.assert_allclose(found.sampled_logprob, [np.log(first[ids[0]]), 0, 0], rtol=1e-5, atol=1e-6)
    assert found.top_ids[0, :3].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.top_logprobs[0, :4], np.log(PROBABILITIES), rtol=1e-5)


def test_a_row_without_numbers_is_told_and_changes_no_other() -> None:
    logits = RANDOM.normal(0, 1, (4, VOCAB_SIZE)).astype(np.float32)
    wanted = [request(number=number, top_p=0.9, top_logprobs=2) for number in range(4)]
    whole = chosen(logits, wanted)
    broken = logits.copy()
    broken[1, 17], broken[2, 3] = np.nan, np.inf
    found = chosen(broken, wanted)
    assert found.valid.tolist() == [True, False, False, True]
    for before, after in zip(whole, found, strict=True):
        np.testing.assert_array_equal(np.asarray(before)[[0, 3]], np.asarray(after)[[0, 3]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_p": 1.5}, "min_p: 1.5 must lie between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 must be above 0"),
        ({"presence_penalty": float("nan")}, "presence_penalty: nan must be a finite number"),
        ({"temperature": float("inf")}, "temperature: inf must be 0 or a finite number above it"),
        ({"top_p": 0.0}, "top_p: 0.0 must lie above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**settings)
