"""Whatever clients send, they are told what is wrong with it, and the server goes on."""

import logging
import random
import socket
from collections.abc import Iterator

import pytest
from malformed import CANARY, KINDS, Wrong
from served import KEY

GREEDY = {"prompt": "Document 7", "max_tokens": 8, "temperature": 0}
MOST_BYTES = 2**17


def check(http, wrong: Wrong) -> None:
    answer = http.request(wrong.method, wrong.path, content=wrong.content, headers=wrong.headers)
    assert answer.status_code == wrong.status, (answer.status_code, answer.text, wrong.content[:200])
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].isprintable(), error
    assert len(error["message"]) < 1000
    if wrong.param is not None:
        assert error["param"] == wrong.param and error["message"].startswith(f"{wrong.param}: "), error


@pytest.fixture
def answered(server) -> Iterator[None]:
    """What is right is answered as ever afterwards."""
    with server.client() as http:
        before = http.post("/v1/completions", json=GREEDY).json()["choices"]
        yield
        assert http.post("/v1/completions", json=GREEDY).json()["choices"] == before
        assert http.get("/health").json() == {"status": "ok"}
    assert server.service.worker.open_answers == 0


def test_there_are_sixty_kinds() -> None:
    assert len(KINDS) >= 60


def test_one_of_each_kind_is_refused_by_name(server, answered) -> None:
    with server.client() as http:
        for number, make in enumerate(KINDS.values()):
            check(http, make(random.Random(number)))


@pytest.mark.slow
def test_ten_thousand_are_refused_by_name(server, answered, caplog, capfd) -> None:
    makers = list(KINDS.items())
    with (
        server.client() as http,
        caplog.at_level(logging.DEBUG, "llama_jax"),
        caplog.at_level(logging.DEBUG, "uvicorn"),
    ):
        for number in range(10_000):
            check(http, makers[number % len(makers)][1](random.Random(number)))
    assert not any(status >= 500 for _, status in server.service.metrics.requests)
    server.await_ends()
    own = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]  # but the client's
    written = "\n".join([*own, *capfd.readouterr(), server.service.metrics.text()])
    assert len(own) > 5_000 and not any(secret in written for secret in (CANARY, KEY))


RAW = {
    "no request": b"\r\n\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "a header without a colon": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nnonsense\r\n\r\n",
    "a long header": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 2**17 + b"\r\n\r\n",
    "many headers": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "a length that is none": b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
    "a negative length": b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    "two lengths": b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "a chunk that is none": b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n"
    b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n" % KEY.encode(),
    "an upgrade": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "a key that is no text": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \xff\xfe\r\n\r\n",
}


def test_what_is_no_http_is_refused(server, answered) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for name, content in RAW.items():
        with socket.create_connection((host, int(port)), 10) as connection:
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(2**16)
            except OSError:  # it had enough before all was sent
                answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), (name, answer[:100])
