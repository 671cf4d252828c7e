"""The engine: answers are those of the full forward pass, alone or among others; what a slot holds is used again;
nothing is compiled once it is warm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.layout import decoding_params
from llama_jax.model import cache as model_cache
from llama_jax.model import lora
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model

MODEL = language_model(SIZES["tiny"], ComputeConfig())
LENGTH = 96
GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)
PROMPTS = [[1, 40, 99], [1], [1, 7, 300, 301, 5, 6, 8, 9, 10, 11], [1, *range(100, 130)], [1, *range(2, 85)]]
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def params():
    # Large weights make the choice depend on the whole prompt.
    return jax.tree.map(lambda leaf: leaf * 3, jax.jit(MODEL.init)(jax.random.key(5)))


@pytest.fixture(scope="module")
def layers(params):
    return decoding_params(MODEL, params)


@pytest.fixture(scope="module")
def engine(layers) -> Engine:
    warm = Engine(MODEL, layers, slots=4, length=LENGTH)
    warm.warm_up()
    return warm


@pytest.fixture(scope="module")
def small_layers(params):
    """Of weights as they are initialized, with which rounding is not amplified."""
    return decoding_params(MODEL, jax.tree.map(lambda leaf: leaf / 3, params))


@pytest.fixture(autouse=True)
def nothing_is_compiled(request):
    """By the warm engine, whatever a test does with it."""
    warm = request.getfixturevalue("engine") if "engine" in request.fixturenames else None
    before = warm and warm.compilations
    yield
    assert (warm and warm.compilations) == before


@jax.jit
def full_pass(params, tokens):
    return MODEL.unembed(MODEL.head(params), MODEL.hidden(params, tokens))[0]


def greedy(params, prompt: list[int]) -> list[int]:
    """The most likely token of a full forward pass, again and again."""
    tokens = list(prompt)
    for _ in range(GREEDY.max_new_tokens):
        padded = jnp.asarray([tokens + [0] * (LENGTH - len(tokens))])
        tokens.append(int(jnp.argmax(full_pass(params, padded)[len(tokens) - 1])))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def expected(params) -> list[list[int]]:
    return [greedy(params, prompt) for prompt in PROMPTS]


def ids(answers) -> list[list[int]]:
    return [[token.id for token in answer] for answer in answers]


def mixed(count: int, longest: int = 60) -> list[Request]:
    """Requests of random lengths and settings."""
    requests = []
    for number in range(count):
        sampling = SamplingConfig(
            max_new_tokens=int(RANDOM.integers(1, 20)),
            temperature=float(RANDOM.choice([0.0, 0.7, 1.5])),
            top_k=int(RANDOM.choice([0, 5, 100])),
            top_p=float(RANDOM.choice([1.0, 0.8])),
            min_p=float(RANDOM.choice([0.0, 0.02])),
            repetition_penalty=float(RANDOM.choice([1.0, 1.2])),
            frequency_penalty=float(RANDOM.choice([0.0, 0.3])),
        )
        prompt = RANDOM.integers(3, 512, int(RANDOM.integers(1, longest))).tolist()
        bias = {int(RANDOM.integers(512)): 2.0} if number % 3 == 0 else {}
        top = int(RANDOM.integers(0, 5)) if number % 2 else None
        requests.append(Request(prompt, sampling, (7, 8), 11, number, top_logprobs=top, logit_bias=bias))
    return requests


def test_answers_are_those_of_the_full_forward_pass(engine, expected) -> None:
    answers = engine.run([Request(prompt, GREEDY) for prompt in PROMPTS])
    assert ids(answers) == expected
    assert len({tuple(answer) for answer in expected}) == 5
    assert [[token.finish for token in answer] for answer in answers] == [[None] * 11 + ["length"]] * 5


def test_an_answer_ends_with_a_stop_token_and_others_go_on(engine, expected) -> None:
    ends = expected[0][3], 511
    answers = engine.run([Request(prompt, GREEDY, ends) for prompt in PROMPTS])
    for answer, whole in zip(answers, expected, strict=True):
        stop = min((whole.index(end) + 1 for end in ends if end in whole), default=len(whole))
        assert [token.id for token in answer] == whole[:stop]
        assert answer[-1].finish == ("stop" if whole[stop - 1] in ends else "length")
    assert len(answers[0]) <= 4


def check_isolation(engine: Engine, requests: list[Request]) -> None:
    together = engine.run(requests)
    assert not engine.waiting and not engine.active
    for request, answer in zip(requests, together, strict=True):
        (alone,) = engine.run([request])
        assert [token.id for token in alone] == [token.id for token in answer]
        assert [token.finish for token in alone] == [token.finish for token in answer]
        if request.top_logprobs is not None:
            for one, other in zip(alone, answer, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
                assert one.sampled_logprob == pytest.approx(other.sampled_logprob, abs=1e-4)
                assert len(one.top) == request.top_logprobs
                np.testing.assert_allclose([p for _, p in one.top], [p for _, p in other.top], atol=1e-5)


@pytest.mark.parametrize("count", [6, pytest.param(32, marks=pytest.mark.slow)])
def test_a_request_is_answered_alike_alone_and_among_others(engine, small_layers, count) -> None:
    own = Engine(MODEL, small_layers, slots=4, length=LENGTH)
    own.warm_up()
    check_isolation(own, mixed(count))
    assert engine.compilations > own.compilations == 0  # of one shape, they share their programs


@pytest.mark.slow
def test_log_probabilities_do_not_depend_on_the_number_of_slots(small_layers) -> None:
    requests = [dataclasses.replace(request, top_logprobs=5) for request in mixed(12)]
    found = [Engine(MODEL, small_layers, slots=slots, length=LENGTH).run(requests) for slots in (1, 7, 16)]
    for answers in zip(*found, strict=True):
        assert len({tuple(token.id for token in answer) for answer in answers}) == 1
        for tokens in zip(*answers, strict=True):
            assert np.ptp([token.logprob for token in tokens]) < 1e-5


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_answers_are_the_same_where_tokens_are_written_after_the_last_layer(small_layers, kind, monkeypatch) -> None:
    """As on accelerators, whose programs run here as well: prompts in chunks, rows of all lengths, slots used again."""

    def answers(model) -> list:
        own = Engine(model, small_layers, slots=4, length=LENGTH, cache_dtype=kind, row_counts=[4])
        requests = [Request(prompt, GREEDY, top_logprobs=2) for prompt in PROMPTS]
        found = [token for answer in own.run(requests) for token in answer]
        assert all(cache.late == (model is not MODEL) for cache in own._state.caches)
        return found

    expected = answers(MODEL)
    monkeypatch.setattr(model_cache, "platform", lambda: "tpu")
    found = answers(language_model(MODEL.config, MODEL.compute))
    assert [token.id for token in found] == [token.id for token in expected]
    assert len({token.id for token in found}) > 5
    logprobs, others = ([[token.logprob, *(p for _, p in token.top)] for token in each] for each in (found, expected))
    np.testing.assert_allclose(logprobs, others, atol=1e-5)


@pytest.mark.slow
def test_two_hundred_requests_compile_nothing(engine) -> None:
    assert all(engine.run(mixed(200)))


def test_answers_to_one_prompt_read_it_once_and_differ(engine) -> None:
    prompt = RANDOM.integers(3, 512, 40).tolist()
    requests = [Request(prompt, SamplingConfig(8, 1.0), answer=answer) for answer in range(6)]
    before = engine.prompt_tokens_read
    answers = engine.run(requests)
    assert engine.prompt_tokens_read == before + 39
    assert len({tuple(answer) for answer in ids(answers)}) == 6
    # The next turn of a chat reads what is new: its last answer token, and what follows.
    (turn,) = engine.run([Request([*prompt, *ids(answers)[5], *range(50, 60)], GREEDY)])
    assert engine.prompt_tokens_read == before + 39 + 10
    fresh = Engine(MODEL, engine._layers, slots=4, length=LENGTH)
    assert ids(fresh.run(requests)) == ids(answers)
    assert ids(fresh.run([Request([*prompt, *ids(answers)[5], *range(50, 60)], GREEDY)])) == ids([turn])


def test_other_weights_read_prompts_anew(engine, params, layers) -> None:
    prompt = RANDOM.integers(3, 512, 40).tolist()
    (first,) = engine.run([Request(prompt, GREEDY)])
    engine.replace_weights(decoding_params(MODEL, jax.tree.map(lambda leaf: leaf * 0.7, params)))
    before = engine.prompt_tokens_read
    (other,) = engine.run([Request(prompt, GREEDY)])
    assert engine.prompt_tokens_read == before + 39 and ids([other]) != ids([first])
    # In the middle of a prompt, of an answer, and of what is still to be read by the host.
    engine.submit(Request(prompt, GREEDY))
    for _ in range(3):
        engine.step()
    engine.submit(Request([*prompt[::-1], *prompt], GREEDY))
    engine.step()
    engine.replace_weights(layers)
    engine.run([])
    assert ids(engine.run([Request(prompt, GREEDY)])) == ids([first])


def test_a_cancelled_request_frees_its_slot_and_changes_no_other(engine, expected) -> None:
    handles = [engine.submit(Request(prompt, GREEDY)) for prompt in PROMPTS]
    found = {handle: [] for handle in handles}
    for turn in range(100):
        for token in engine.step():
            found[token.handle].append(token.id)
        if turn == 3:
            assert (engine.active, engine.waiting) == (4, 1)
            engine.cancel(handles[0])
            engine.cancel(handles[4])
            assert (engine.active, engine.waiting) == (3, 0)
            before = len(found[handles[0]])
            engine.cancel(12345)
    assert [found[handle] for handle in handles[1:4]] == expected[1:4]
    assert len(found[handles[0]]) == before < 12 and found[handles[4]] == []
    assert engine.active == 0


class Every:
    """Allows the multiples of a number, and the end after so many tokens."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count, self.seen = number, count, []

    def allowed(self) -> np.ndarray:
        bits = np.arange(512) % self.number == 0
        if len(self.seen) >= self.count:
            bits = np.arange(512) == 511
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def push(self, token: int) -> None:
        self.seen.append(token)


def test_a_constraint_holds_its_own_answer_alone(engine, expected) -> None:
    held = [Every(7, 4), Every(3, 6)]
    sampling = SamplingConfig(20, 1.0)
    requests = [
        Request([1, 2, number], sampling, (511,), constraint=constraint) for number, constraint in enumerate(held)
    ]
    answers = ids(engine.run([*requests, Request(PROMPTS[0], GREEDY)]))
    assert answers[2] == expected[0]
    for answer, constraint in zip(answers, held, strict=False):
        assert answer == [*constraint.seen, 511] and len(answer) == constraint.count + 1
        assert all(token % constraint.number == 0 for token in constraint.seen)


def test_a_row_without_numbers_ends_alone_and_its_slot_is_usable_again(engine, layers, expected) -> None:
    table = layers["embedding"]["table"].at[500].set(jnp.nan)
    broken = Engine(MODEL, layers | {"embedding": {"table": table}}, slots=4, length=LENGTH)
    prompts = [PROMPTS[0], [1, 500, 3], [*range(2, 40), 500, 6], PROMPTS[3]]
    answers = broken.run([Request(prompt, GREEDY) for prompt in prompts])
    assert ids([answers[0], answers[3]]) == [expected[0], expected[3]]
    assert [[token.finish for token in answers[row]] for row in (1, 2)] == [["error"]] * 2
    assert ids(broken.run([Request(prompt, GREEDY) for prompt in PROMPTS])) == expected

    def cancelled_in_each_slot(others: int) -> bool:
        """Whether one that breaks, beside so many others, was cancelled while its prompt was read, in every slot."""
        is_read = []
        for _ in range(broken.slots):
            handles = [broken.submit(Request(PROMPTS[0], GREEDY)) for _ in range(others)]
            handles.append(broken.submit(Request([1, 500, *range(100, 170)], GREEDY)))
            while not (own := [slot.job for slot in broken._rows if slot.job and slot.job.handle == handles[-1]]):
                broken.step()
            is_read.append(own[0].is_read)
            for handle in handles:
                broken.cancel(handle)
        return not any(is_read)

    for others, still_read in ((0, False), (3, True)):
        assert cancelled_in_each_slot(others) == still_read
        assert ids(broken.run([Request(prompt, GREEDY) for prompt in [*PROMPTS, PROMPTS[4]]])) == [
            *expected,
            expected[4],
        ]


def test_each_request_takes_its_adapter_or_the_base_alone(params, expected) -> None:
    fresh = lora.init_adapter(AdapterConfig(rank=2), params, jax.random.key(0))

    def random_adapter(seed: int):
        return jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(seed), leaf.shape) * 0.3, fresh)

    adapters = [random_adapter(1), random_adapter(2)]
    several = lora.with_adapter(params, lora.stack_adapters(adapters))
    engine = Engine(MODEL, decoding_params(MODEL, several), slots=4, length=LENGTH, row_counts=(4,))
    answers = engine.run([Request(PROMPTS[3], GREEDY, adapter=adapter) for adapter in (None, 1, 0, 1)])
    assert ids(answers[:1]) == expected[3:4]
    one, other = (greedy(lora.with_adapter(params, adapter), PROMPTS[3]) for adapter in adapters)
    assert ids(answers[1:]) == [other, one, other] and one != other
    with pytest.raises(UserError, match="adapter: there is no number 2 among the 2 of the model"):
        engine.submit(Request([1], GREEDY, adapter=2))


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
        engine = Engine(MODEL, decoding_params(MODEL, placed), slots=8, length=LENGTH)
    # (Outside of the mesh: an engine brings its own.)
    assert ids(engine.run([Request(prompt, GREEDY) for prompt in PROMPTS])) == expected
    assert ids(engine.run([Request(PROMPTS[3], GREEDY)] * 3)) == [expected[3]] * 3


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], GREEDY), "prompt: has no token"),
        (Request([1] * 85, GREEDY), "a prompt of 85 tokens and 12 new ones exceed the context of 96"),
        (Request([1, 512], GREEDY), "prompt: token 512 is not one of the 512 of the vocabulary"),
        (Request([1], GREEDY, (-1,)), "stop_ids: token -1 is not one"),
        (Request([1], GREEDY, logit_bias={600: 1.0}), "logit_bias: token 600 is not one"),
        (Request([1], GREEDY, logit_bias={6: float("nan")}), "logit_bias: holds a number that is not finite"),
        (Request([1], GREEDY, top_logprobs=21), "top_logprobs: 21 must lie between 0 and 20"),
        (Request([1], GREEDY, adapter=0), "adapter: there is no number 0 among the 0 of the model"),
    ],
)
def test_what_can_never_be_answered_is_refused(engine, request_, message) -> None:
    with pytest.raises(UserError, match=message):
        engine.submit(request_)
    assert engine.waiting == 0
