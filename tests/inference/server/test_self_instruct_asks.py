"""Self-Instruct's generator behind our own server, which is full, slow, broken or gone."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import KEY, opened_model, running

import llama_jax
from llama_jax.core.errors import CannotGoOnError
from llama_jax.instruct.config import EndpointConfig
from llama_jax.instruct.generators.endpoint import Endpoint
from llama_jax.instruct.generators.kept import KeptAnswers
from llama_jax.instruct.generators.requests import Request

pytestmark = pytest.mark.slow
REQUESTS = [Request(f"Document {number}", 20, seed=number) for number in range(24)]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Ask a server `REQUESTS`: `asked(url, setting=value)` gives what is kept, beside what earlier calls kept."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def ask(url: str, **settings) -> KeptAnswers:
        endpoint = Endpoint(EndpointConfig(model="tiny", url=f"{url}/v1", **settings))
        ask.endpoint = endpoint
        with contextlib.closing(KeptAnswers(endpoint, tmp_path / "answers.jsonl", lambda: False)) as kept:
            endpoint.budget.spend(kept.tokens_in, kept.tokens_out)
            answers = kept.answers(REQUESTS)
        assert all(answer.is_usable and answer.tokens_out <= 20 for answer in answers)
        keys = [json.loads(line)["key"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        there = [key for key in keys if key is not None]  # the others are of what was lost
        assert len(there) == len(set(there)) == len(REQUESTS)
        return kept

    return ask


def answered(server, status: int) -> int:
    """How many requests had that for an answer."""
    server.await_ends()
    return sum(count for (_, each), count in server.service.metrics.requests.items() if each == status)


def test_a_full_queue_is_waited_for(asked) -> None:
    with running(opened_model(100), slots=1, max_queue=1) as server:
        kept = asked(server.url, concurrency=6)
        assert answered(server, 429) > 0 and answered(server, 200) == len(REQUESTS)
    assert (kept.asked, kept.lost) == (len(REQUESTS), 0)


@pytest.mark.parametrize("who", ["server", "client"])
def test_what_takes_too_long_is_asked_again(asked, who: str) -> None:
    patience = {"request_timeout_seconds": 0.5} if who == "server" else {}
    with running(opened_model(100), slots=2, **patience) as server:
        server.service.worker._commands.put(lambda: time.sleep(2))
        kept = asked(server.url, concurrency=2, timeout_seconds=60.0 if who == "server" else 1.0)
        late = answered(server, 504 if who == "server" else 499)
        assert late >= 2 and answered(server, 200) == len(REQUESTS)
    assert kept.lost == (0 if who == "server" else late)


def test_an_engine_that_fails_now_and_then_is_asked_again(asked, monkeypatch) -> None:
    with running(opened_model(100), slots=2) as server:
        worker, made = server.service.worker, server.service.worker._make_engine

        def failing(engine, after: int):
            step, left = engine.step, [after]

            def stepped():
                left[0] -= 1
                if not left[0]:
                    raise RuntimeError("out of memory")
                return step()

            engine.step = stepped
            return engine

        monkeypatch.setattr(worker, "_make_engine", lambda: failing(made(), 60))
        failing(worker._engine, 30)
        kept = asked(server.url, concurrency=2)
        assert answered(server, 500) >= 3 and answered(server, 200) == len(REQUESTS)
    assert (kept.asked, kept.lost) == (len(REQUESTS), 0)


@contextlib.contextmanager
def alone(port: int = 0) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server as a process of its own, and its address."""
    path = os.pathsep.join([str(Path(llama_jax.__file__).parents[1]), *sys.path])
    command = [sys.executable, Path(__file__).with_name("serving_alone.py"), str(port)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_server_that_is_killed_and_comes_back_is_asked_for_the_rest(asked, tmp_path) -> None:
    file = tmp_path / "answers.jsonl"

    def kill_soon(process: subprocess.Popen) -> None:
        while not file.exists() or len(file.read_bytes().splitlines()) < 6:
            time.sleep(0.002)
        process.kill()

    with alone() as (process, url):
        killing = threading.Thread(target=kill_soon, args=(process,))
        killing.start()
        with pytest.raises(CannotGoOnError, match="answers so far are kept"):
            asked(url, concurrency=2, attempts=2, requests_per_minute=1200)
        killing.join()
    before = file.read_text().splitlines()
    assert 6 <= len(before) < len(REQUESTS)
    with alone(int(url.rpartition(":")[2])) as (_, again):
        assert again == url
        kept = asked(url, concurrency=2)
    assert file.read_text().splitlines()[: len(before)] == before
    assert (kept.asked, kept.reused) == (len(REQUESTS) - len(before), len(before))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_holds_to_one_request(asked, concurrency: int) -> None:
    price = {"price_in": 0.0, "price_out": 1e6}  # a dollar a token
    with running(opened_model(100), slots=2) as server:
        with pytest.raises(CannotGoOnError, match=r"budget: \$"):
            asked(server.url, concurrency=concurrency, budget=150.0, **price)
        server.await_ends()
        spent = server.service.metrics.generated_tokens
        assert asked.endpoint.budget.spent == spent and 150 <= spent < 150 + 20
        asked(server.url, concurrency=concurrency, budget=1e4, **price)
        assert answered(server, 200) == len(REQUESTS)
