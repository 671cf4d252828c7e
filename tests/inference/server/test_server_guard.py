"""Who may come in, and from where."""

import asyncio
import base64
import logging

import httpx2
import pytest
from malformed import CANARY
from served import KEY

from llama_jax.core.errors import UserError
from llama_jax.inference.server.app import ROUTES, make_app
from llama_jax.inference.server.config import ServeConfig
from llama_jax.inference.server.serving import KEY_VARIABLE, bound_socket, read_api_key


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


WRONG_KEYS = [
    "",
    "Bearer",
    f"Bearer {KEY}x",
    f"Bearer {KEY[:-1]}",
    KEY,
    f"Token {KEY}",
    basic("x"),
    "Basic é",
]


def test_every_route_but_health_needs_the_key(server) -> None:
    app = make_app(server.service, KEY)
    assert {(route.path, *sorted(route.methods - {"HEAD"})) for route in app.routes} == {
        (path, method) for method, path, _ in ROUTES
    }
    with httpx2.Client(base_url=server.url) as http:
        for method, path, _ in [*ROUTES, ("GET", "/nowhere", None), ("OPTIONS", "/v1/models", None)]:
            url = path.replace("{name:path}", "tiny")
            for key in WRONG_KEYS:
                answer = http.request(method, url, headers={"authorization": key.encode("latin-1")} if key else {})
                if path == "/health":
                    assert answer.status_code == 200
                else:
                    assert answer.status_code == 401, (path, key)
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                    scheme = "Basic" if path == "/" else "Bearer"
                    assert answer.headers["www-authenticate"].startswith(scheme)
            for key in (f"Bearer {KEY}", f"bearer {KEY}", basic(KEY)):
                assert http.request(method, url, headers={"authorization": key}).status_code != 401


def request(app, **headers: str) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://localhost:8000"
        ) as http:
            return await http.get("/v1/models", headers=headers)

    return asyncio.run(ask())


def test_without_a_key_only_this_machine_by_its_own_names_is_served(server) -> None:
    app = make_app(server.service, None)
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80", "[::1]", "LOCALHOST"):
        assert request(app, host=host).status_code == 200, host
    for host in ("example.org", "example.org:8000", "localhost.example.org", "10.0.0.1", "", "127.0.0.1.example.org"):
        answer = request(app, host=host)
        assert answer.status_code == 403 and answer.json()["error"]["message"].startswith("host: "), host


def test_only_pages_of_named_origins_may_read(opened, server) -> None:
    config = ServeConfig(cors_origins=("https://example.org",))
    service = server.service.__class__(opened, server.service.worker, config)
    app = make_app(service, KEY)

    async def ask(method: str, origin: str) -> httpx2.Response:
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        headers = {"origin": origin, **(wanted if method == "OPTIONS" else {})}
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as http:
            return await http.request(method, "/v1/chat/completions", headers=headers)

    asked = asyncio.run(ask("OPTIONS", "https://example.org"))
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://example.org"
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    # The answer to a request without the key can be read by that page too, which so learns why it was refused.
    refused = asyncio.run(ask("POST", "https://example.org"))
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://example.org"
    for method in ("OPTIONS", "POST"):
        other = asyncio.run(ask(method, "https://example.com"))
        assert other.status_code in (400, 401) and "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in asyncio.run(_without_cors(server)).headers


async def _without_cors(server) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=server.url) as http:
        return await http.get("/v1/models", headers={"origin": "https://example.org"})


def test_other_machines_need_a_key(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_api_key(ServeConfig()) is None
    for host in ("127.0.0.2", "::1", "localhost"):
        assert read_api_key(ServeConfig(host=host)) is None
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(UserError, match=f"--host {host}: others can connect"):
            read_api_key(ServeConfig(host=host))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_api_key(ServeConfig(host="0.0.0.0")) == KEY
    file = tmp_path / "key"
    file.write_text("another-key\nmore\n")
    assert read_api_key(ServeConfig(host="0.0.0.0", api_key_file=str(file))) == "another-key"
    for content in ("", "\n", "short", "with a space", "schlüssel-lang"):
        file.write_text(content)
        with pytest.raises(UserError, match="at least 8 characters") as caught:
            read_api_key(ServeConfig(api_key_file=str(file)))
        assert not content.strip() or content not in str(caught.value)
    with pytest.raises(UserError, match="is not a text file"):
        read_api_key(ServeConfig(api_key_file=str(tmp_path)))


def test_a_port_in_use_is_said(server) -> None:
    with pytest.raises(UserError, match=r"--port \d+: address already in use"):
        bound_socket(ServeConfig(port=int(server.url.rpartition(":")[2])))


def test_nothing_that_clients_write_is_in_the_log(server, caplog) -> None:
    with caplog.at_level(logging.DEBUG), server.client() as http:
        body = {"prompt": CANARY, "max_tokens": 2, "stop": [CANARY], "user": CANARY}
        assert http.post(f"/v1/completions?{CANARY}", json=body).status_code == 200
        assert http.post("/v1/completions", json={**body, CANARY: 1}).status_code == 400
        assert http.post(f"/{CANARY}", json=body, headers={CANARY: CANARY}).status_code == 404
        assert http.get("/v1/models", headers={"authorization": f"Bearer {CANARY}"}).status_code == 401
        metrics = http.get("/metrics").text
        server.await_ends()
    own = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]  # but the client's
    written = "\n".join([*own, metrics])
    assert "/v1/completions 200 in" in written
    assert CANARY not in written and KEY not in written


def test_an_error_inside_is_logged_by_its_place_alone(opened, server, caplog, monkeypatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ValueError(f"cannot do {CANARY}")

    monkeypatch.setattr(server.service.tokenizer, "encode", failing)
    with server.client() as http:
        answer = http.post("/tokenize", json={"prompt": CANARY})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error" and CANARY not in answer.text + caplog.text
    assert "ValueError at" in caplog.text and "test_server_guard.py" in caplog.text
