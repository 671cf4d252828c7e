"""Clients that leave, do not read, or are too many: the others notice nothing."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import KEY, Server, client_of, opened_model, running

import llama_jax
from llama_jax.inference.server.answering import worker as worker_module
from llama_jax.inference.server.protocol.errors import ApiError
from llama_jax.inference.server.service import Call

STREAMED = {"prompt": "Document 7 says", "max_tokens": 80, "stream": True, "ignore_eos": True}
WITNESSES = [
    {"prompt": "twice", "max_tokens": 60, "temperature": 0, "ignore_eos": True},
    {"prompt": "Document", "max_tokens": 60, "seed": 3, "top_p": 0.9, "n": 2, "ignore_eos": True},
]


def texts(http, body: dict) -> list[str]:
    return [choice["text"] for choice in http.post("/v1/completions", json=body).json()["choices"]]


def is_idle(server: Server, seconds: float = 30.0) -> bool:
    """Whether nothing is left of what was asked, soon."""
    server.await_ends()
    worker, until = server.service.worker, time.monotonic() + seconds
    while time.monotonic() < until:
        if not (worker.open_answers or worker.active or worker.waiting or worker._places or worker._streams):
            return worker._engine.active == worker._engine.waiting == 0
        time.sleep(0.005)
    return False


def await_open(server: Server, answers: int) -> None:
    """Wait until so many answers are open."""
    until = time.monotonic() + 30
    while server.service.worker.open_answers != answers:
        assert time.monotonic() < until, server.service.worker.open_answers
        time.sleep(0.005)


@contextlib.contextmanager
def held(server: Server) -> Iterator[None]:
    """The engine does nothing in this block."""
    there, gone = threading.Event(), threading.Event()
    server.service.worker._commands.put(lambda: (there.set(), gone.wait(30)))
    assert there.wait(30)
    try:
        yield
    finally:
        gone.set()


def leave_at_random_tokens(server: Server, clients: int, seed: int) -> None:
    """Each client reads so many events of a stream, some none at all, and leaves."""
    rng = random.Random(seed)
    with server.client() as http:
        for _ in range(clients):
            body = {**STREAMED, "n": rng.randint(1, 2), "seed": rng.randint(0, 99)}
            with http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code == 429:
                    continue
                lines = answer.iter_lines()
                for _ in range(rng.choice([0, 0, 1, 2, rng.randint(3, 160)])):
                    if next(lines, None) is None:
                        break


def check_cancellations(server: Server, clients: int) -> None:
    with server.client() as http:
        alone = [texts(http, body) for body in WITNESSES]
        compilations = server.service.worker._engine.compilations
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            leaving = [pool.submit(leave_at_random_tokens, server, clients // 2, seed) for seed in range(2)]
            rounds = 0
            while rounds < 2 or not all(each.done() for each in leaving):
                assert [texts(http, body) for body in WITNESSES] == alone
                rounds += 1
            for each in leaving:
                each.result()
        assert is_idle(server)
        assert [texts(http, body) for body in WITNESSES] == alone
        assert server.service.worker._engine.compilations == compilations


def test_clients_that_leave_free_their_slots_and_change_no_other_answer(server) -> None:
    check_cancellations(server, 8)


@pytest.mark.slow
def test_five_hundred_cancellations() -> None:
    with running(opened_model(100), slots=4, max_queue=64, max_answers=4) as server:
        check_cancellations(server, 500)
        assert server.service.metrics.cancelled_answers > 100


def test_a_client_that_leaves_without_streaming_frees_its_slot(server) -> None:
    before = server.service.metrics.cancelled_answers
    with held(server):
        body = b'{"prompt": "x", "max_tokens": 80}'
        with _connection(server.url, body):
            await_open(server, 1)
        await_open(server, 0)
    assert is_idle(server)
    assert server.service.metrics.cancelled_answers == before + 1


def _connection(url: str, body: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((host, int(port)))
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    made.sendall(head.encode() + body)
    return made


ASK_HEALTH = """
import http.client, json, sys, time
connection, found = http.client.HTTPConnection(sys.argv[1]), []
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    found.append(time.perf_counter() - started)
print(json.dumps(sorted(found)))
"""


def seconds_of_health(url: str, asked: int) -> list[float]:
    """How long `/health` takes, in order; asked by another process, which does not wait for this one's interpreter."""
    command = [sys.executable, "-c", ASK_HEALTH, url.removeprefix("http://"), str(asked)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def seconds_beside_slow_readers(url: str, readers: int, asked: int) -> float:
    """The 99th percentile of how long `/health` takes."""
    body = b'{"prompt": "x", "max_tokens": 90, "stream": true, "ignore_eos": true, "logprobs": 20}'
    with contextlib.ExitStack() as stack, client_of(url) as http:
        # What is imported with the first request is no slow reader's.
        http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        for _ in range(readers):
            stack.enter_context(_connection(url, body))
        found = seconds_of_health(url, asked)
        # Those that read are answered although the others do not.
        assert len(texts(http, WITNESSES[0])) == 1
    median, slow = (found[int(part * asked)] for part in (0.5, 0.99))
    print(f"/health with {readers} slow readers: median {1000 * median:.1f} ms, p99 {1000 * slow:.1f} ms")
    return slow


def test_slow_readers_keep_nobody_waiting(server) -> None:
    assert seconds_beside_slow_readers(server.url, 10, 50) < 10  # far below the minute after which they are dropped
    assert is_idle(server)


@pytest.mark.slow
def test_a_hundred_slow_readers() -> None:
    path = os.pathsep.join([str(Path(llama_jax.__file__).parents[1]), *sys.path])
    command = [sys.executable, Path(__file__).with_name("serving_alone.py")]
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""}
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as alone:
        assert alone.stdin is not None and alone.stdout is not None
        url = alone.stdout.readline().strip()
        assert seconds_beside_slow_readers(url, 100, 1000) < 0.1
        with client_of(url) as http:
            until = time.monotonic() + 30
            while "\nllama_jax_answers_open 0\n" not in http.get("/metrics").text:
                assert time.monotonic() < until
        alone.stdin.close()
        assert alone.wait(60) == 0


def in_loop(server: Server, coroutine):
    """The result of a coroutine in the event loop of the server."""
    return asyncio.run_coroutine_threadsafe(coroutine, server.service.worker._loop).result(30)


def test_what_nobody_reads_is_cancelled(server, monkeypatch) -> None:
    monkeypatch.setattr(worker_module, "MOST_UNREAD", 5)
    from llama_jax.inference.server.answering.generation import generation_of

    async def ask_and_do_not_read() -> str:
        service = server.service
        call = Call(service, {}, {}, "", time.perf_counter(), 0)
        how = generation_of({"ignore_eos": True}, service.tokenizer, service.defaults, service.limits)
        answers = await call.answers([[5]], how)
        while service.worker.open_answers:
            await asyncio.sleep(0.01)
        with pytest.raises(ApiError) as caught:
            async for _ in answers:
                pass
        call.close()
        return caught.value.message

    assert in_loop(server, ask_and_do_not_read()) == "more than 5 tokens were not read; read faster"
    assert is_idle(server)


def test_who_comes_when_too_many_wait_is_told_when_to_come_again(server) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 4}
    with server.client() as http, concurrent.futures.ThreadPoolExecutor(4) as pool, held(server):
        there = [pool.submit(http.post, "/v1/completions", json=body) for _ in range(3)]
        await_open(server, 12)
        refused = http.post("/v1/completions", json=body)
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        server.service.metrics.seconds_per_answer = 1e4
        assert http.post("/v1/completions", json=body).headers["retry-after"] == "120"
        server.service.metrics.seconds_per_answer = 1.0
        assert http.get("/health").status_code == 200
    assert [each.result(30).status_code for each in there] == [200] * 3


def test_time_runs_out_with_an_error(server, monkeypatch) -> None:
    service = server.service
    monkeypatch.setattr(service, "config", dataclasses.replace(service.config, request_timeout_seconds=0.3))
    with held(server), server.client() as http:
        late = http.post("/v1/completions", json={"prompt": "x"})
        assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
        assert late.json()["error"]["message"] == "the request was not answered within 0.3 seconds"
    assert is_idle(server)


def test_a_failing_step_fails_what_is_under_way_and_nothing_else(server, monkeypatch, caplog) -> None:
    with server.client() as http:
        before = texts(http, WITNESSES[0])
        engine = server.service.worker._engine

        def failing():
            raise RuntimeError("out of memory: canary")

        monkeypatch.setattr(engine, "step", failing)
        failed = http.post("/v1/completions", json=WITNESSES[0])
        assert failed.status_code == 500
        assert failed.json()["error"]["message"] == "the engine failed; the server's log says where"
        assert "RuntimeError at" in caplog.text and "canary" not in caplog.text
        assert texts(http, WITNESSES[0]) == before
        assert server.service.worker._engine is not engine
    assert is_idle(server)


def test_a_server_that_ends_writes_what_it_began_and_begins_nothing(opened) -> None:
    with (
        running(opened, slots=2, shutdown_timeout_seconds=30.0) as server,
        server.client() as http,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        with held(server):
            began = pool.submit(http.post, "/v1/completions", json=STREAMED)
            await_open(server, 1)
            server.stop()
            until = time.monotonic() + 30
            while not server.service.draining and time.monotonic() < until:
                time.sleep(0.005)
            assert http.get("/health").json() == {"status": "draining"}
            refused = http.post("/v1/completions", json=STREAMED)
            assert refused.status_code == 503 and "retry-after" in refused.headers
        lines = began.result(30).text.splitlines()
    assert lines[-2] == "data: [DONE]" and '"finish_reason":"length"' in lines[-4]


def test_a_server_waits_for_answers_only_so_long(opened, monkeypatch) -> None:
    with running(opened, slots=2, shutdown_timeout_seconds=0.2) as server, server.client() as http:
        monkeypatch.setattr(server.service.worker._engine, "step", lambda: time.sleep(0.01) or [])  # no token comes
        with http.stream("POST", "/v1/completions", json=STREAMED) as answer:
            server.stop()
            rest = list(answer.iter_lines())
        assert '"message":"the server ends"' in rest[-2]
