"""An endpoint that fails in every way, and what is done about it."""

import json
import threading
import time

import pytest
from scripted_endpoint import scripted_endpoint

from llama_jax.core.errors import CannotGoOnError, SavedAfterSignal, UserError
from llama_jax.instruct.config import EndpointConfig
from llama_jax.instruct.generators.endpoint import Endpoint
from llama_jax.instruct.generators.kept import KeptAnswers
from llama_jax.instruct.generators.requests import Request


def requests(count: int, **more) -> list[Request]:
    return [Request(({"role": "user", "content": f"Question {n}"},), 20, seed=n, **more) for n in range(count)]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Ask an endpoint some requests: `asked(scripted, requests, setting=value)` gives answers and what is kept."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("llama_jax.instruct.generators.endpoint.random.uniform", lambda low, high: 0.01)

    def ask(scripted, wanted, stopping=lambda: False, **settings):
        endpoint = Endpoint(EndpointConfig(model="m", url=scripted.url, **settings))
        kept = KeptAnswers(endpoint, tmp_path / "answers.jsonl", stopping)
        endpoint.budget.spend(kept.tokens_in, kept.tokens_out)
        ask.kept, ask.endpoint = kept, endpoint
        try:
            return kept.answers(wanted)
        finally:
            kept.close()

    return ask


def test_the_request_is_sent_as_it_is(asked) -> None:
    with scripted_endpoint(lambda body: "fine") as scripted:
        wanted = [
            Request(({"role": "user", "content": "Hi"},), 20, 0.5, 0.9, 1.5, ("END",), 7),
            Request("Once", 30, 0.0),
        ]
        answers = asked(scripted, wanted, concurrency=1)
    chat, completion = scripted.bodies
    expected = {"model": "m", "temperature": 0.5, "top_p": 0.9, "presence_penalty": 1.5, "stop": ["END"], "seed": 7}
    assert {name: chat[name] for name in expected} == expected
    assert (chat["messages"], chat["max_completion_tokens"]) == ([{"role": "user", "content": "Hi"}], 20)
    assert (completion["prompt"], completion["max_tokens"], "stop" in completion) == ("Once", 30, False)
    assert [tuple(answer) for answer in answers] == [("fine", "stop", 100, 50)] * 2


@pytest.mark.parametrize("problem", ["408", "429", "500", "503", "slow", "cut", "empty"])
def test_what_may_pass_is_asked_again(asked, problem: str) -> None:
    with scripted_endpoint(fault=lambda number: problem if number in (0, 1, 4) else None) as scripted:
        patience = 1.5 if problem == "slow" else 60.0
        answers = asked(scripted, requests(6), concurrency=2, timeout_seconds=patience)
    assert [answer.finish for answer in answers] == ["stop"] * 6
    assert len(scripted.bodies) == 9
    lost = 3 if problem in ("slow", "cut", "empty") else 0
    assert (asked.kept.asked, asked.kept.lost) == (6, lost)


@pytest.mark.parametrize("problem", ["500", "quota"])
def test_what_does_not_pass_ends_the_run_and_keeps_what_came(asked, problem: str, tmp_path) -> None:
    with scripted_endpoint(fault=lambda number: problem if number >= 3 else None) as scripted:
        with pytest.raises(CannotGoOnError, match="answers so far are kept"):
            asked(scripted, requests(6), concurrency=1, attempts=2)
        assert len(scripted.bodies) == (5 if problem == "500" else 4)
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    with scripted_endpoint() as scripted:
        assert len(asked(scripted, requests(6))) == 6
        assert len(scripted.bodies) == 3  # those that were not answered before


@pytest.mark.parametrize("problem", ["400", "401"])
def test_a_mistake_is_not_repeated(asked, problem: str) -> None:
    with scripted_endpoint(fault=lambda number: problem) as scripted:
        with pytest.raises(UserError, match="endpoint: "):
            asked(scripted, requests(1))
        assert len(scripted.bodies) == 1


def test_nobody_there() -> None:
    endpoint = Endpoint(EndpointConfig(model="m", url="http://127.0.0.1:9/v1", attempts=1))
    lost: list = []
    with pytest.raises(CannotGoOnError, match="APIConnectionError"):
        list(endpoint.answers(requests(1), lambda: False, lambda *tokens: lost.append(tokens)))
    assert lost == []


def test_a_context_that_is_too_short_is_asked_for_less_until_there_is_nothing_left(asked) -> None:
    with scripted_endpoint(fault=lambda number: "context" if number < 3 else None) as scripted:
        (answer,) = asked(scripted, [Request("x", 100)], concurrency=1)
    assert [body["max_tokens"] for body in scripted.bodies] == [100, 80, 64, 51]
    assert answer.finish == "stop"
    with scripted_endpoint(fault=lambda number: "context") as scripted:
        (answer,) = asked(scripted, [Request("y", 30)], concurrency=1)
    assert (answer.text, answer.finish) == ("", "too_long")


def test_cut_and_withheld_answers_are_told_apart(asked) -> None:
    with scripted_endpoint(fault=lambda number: ["length", "filtered"][number]) as scripted:
        cut, withheld = asked(scripted, requests(2), concurrency=1)
    assert (cut.was_cut, cut.is_usable, withheld.is_usable, withheld.text) == (True, True, False, "")


def test_nothing_is_asked_twice(asked, tmp_path) -> None:
    with scripted_endpoint() as scripted:
        first = asked(scripted, [*requests(3), *requests(2)])
        assert len(scripted.bodies) == 3
        with (tmp_path / "answers.jsonl").open("a") as file:
            file.write('{"key": "half a li')  # what a kill leaves
        assert asked(scripted, requests(4))[:3] == first[:3]
        assert len(scripted.bodies) == 4
    assert (asked.kept.asked, asked.kept.reused) == (1, 3)


def test_several_are_under_way_at_once_and_never_more(asked) -> None:
    together = threading.Barrier(4, timeout=30)  # no answer comes before four are asked for
    with scripted_endpoint(lambda body: f"{together.wait()}") as scripted:
        asked(scripted, requests(12), concurrency=4)
    assert scripted.most_at_once == 4


def test_a_minute_has_no_more_requests_than_allowed(asked) -> None:
    with scripted_endpoint() as scripted:
        started = time.monotonic()
        asked(scripted, requests(5), requests_per_minute=600)
    assert 0.4 <= time.monotonic() - started < 20


PRICE = 100 * 2e-6 + 50 * 10e-6
"""Of an answer, at 2 and 10 dollars for a million tokens."""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_holds_to_one_request(asked, concurrency: int) -> None:
    settings = {"price_in": 2.0, "price_out": 10.0, "budget": 5.5 * PRICE, "concurrency": concurrency}
    wanted = [Request(f"{'word ' * 30}{n}", 60) for n in range(20)]
    with scripted_endpoint(seconds=0.01) as scripted:
        with pytest.raises(CannotGoOnError, match=r"budget: \$0.0042 of \$0.00385"):
            asked(scripted, wanted, **settings)
        assert scripted.answered == 6
        assert asked.endpoint.budget.spent == pytest.approx(6 * PRICE)
        with pytest.raises(CannotGoOnError, match="budget: "):  # the same again spends nothing
            asked(scripted, wanted, **settings)
        assert scripted.answered == 6
        assert len(asked(scripted, wanted, **settings | {"budget": 1.0})) == 20
        assert scripted.answered == 20


def test_what_is_lost_is_paid_for(asked) -> None:
    with scripted_endpoint(fault=lambda number: "cut" if number == 0 else None) as scripted:
        asked(scripted, requests(1), price_in=0.0, price_out=10.0, budget=1.0)
    assert asked.endpoint.budget.spent == pytest.approx((20 + 50) * 10e-6)  # at the most that it can have written


def test_a_run_that_is_to_end_waits_for_what_is_under_way(asked, tmp_path) -> None:
    with scripted_endpoint(seconds=0.05) as scripted:
        with pytest.raises(SavedAfterSignal):
            asked(scripted, requests(20), stopping=lambda: len(scripted.bodies) >= 4, concurrency=2)
        lines = (tmp_path / "answers.jsonl").read_text().splitlines()
        assert len(lines) == scripted.answered < 8
        assert all(json.loads(line)["text"] for line in lines)


def test_a_key_comes_from_the_environment_alone(monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="MY_KEY; put the key there"):
        Endpoint(EndpointConfig(model="m", key_variable="MY_KEY"))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"url": "localhost:8000/v1"}, "endpoint.url"),
        ({"concurrency": 0}, "endpoint.concurrency"),
        ({"timeout_seconds": 0.0}, "endpoint.timeout_seconds"),
        ({"price_in": -1.0}, "endpoint.price_in"),
        ({"budget": 1.0}, "endpoint.budget"),
    ],
)
def test_settings_are_checked(settings: dict, field: str) -> None:
    with pytest.raises(UserError, match=field):
        EndpointConfig(**settings)
