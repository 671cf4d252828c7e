"""The ASGI application: the table of routes, and what happens to every request on its way to one and back."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llama_jax.core.errors import UserError
from llama_jax.inference.server.answering.worker import where_raised
from llama_jax.inference.server.guard import Guard
from llama_jax.inference.server.protocol.body import parsed, read_body
from llama_jax.inference.server.protocol.errors import ApiError, of_user_error
from llama_jax.inference.server.protocol.replies import Events, Reply, json_text
from llama_jax.inference.server.responses.route import respond
from llama_jax.inference.server.routes import models
from llama_jax.inference.server.routes.chat import chat
from llama_jax.inference.server.routes.completions import complete
from llama_jax.inference.server.service import Call, Service

Handler = Callable[[Call], Awaitable[Reply | Events]]
_SECONDS_FOR_A_BODY = 60.0
_SMALL_BODY = 2**14
_log = logging.getLogger("llama_jax.serve")


class Served(NamedTuple):
    """A route."""

    method: str
    path: str
    handler: Handler


ROUTES = (
    Served("POST", "/v1/chat/completions", chat),
    Served("POST", "/v1/completions", complete),
    Served("POST", "/v1/responses", respond),
    Served("GET", "/v1/models", models.models),
    Served("GET", "/v1/models/{name:path}", models.model),
    Served("POST", "/tokenize", models.tokenize),
    Served("POST", "/detokenize", models.detokenize),
    Served("GET", "/health", models.health),
    Served("GET", "/metrics", models.metrics_text),
    Served("GET", "/", models.page),
)


def make_app(service: Service, api_key: str | None) -> Starlette:
    """The application. Its routes are those of `ROUTES`; all but `/health` need the key, where there is one."""
    config = service.config
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
        max_age=600,
    )
    turns = asyncio.Lock()
    guard = Middleware(Guard, service=service, api_key=api_key)
    return Starlette(
        routes=[
            Route(path, _Endpoint(service, handler, path, turns), methods=[method]) for method, path, handler in ROUTES
        ],
        middleware=[cors, guard] if config.cors_origins else [guard],
        exception_handlers={HTTPException: _no_route},
    )


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = ", ".join(f"{method} {path}" for method, path, _ in ROUTES)
    wrong = ApiError(f"{error.detail.lower()}; there are {known}", status=error.status_code)
    return Response(json_text(wrong.body), wrong.status, error.headers, "application/json")


class _Endpoint:
    """A handler as an ASGI application: reads the body, ends the work when the client leaves or time is up, and sends
    what comes of it."""

    def __init__(self, service: Service, handler: Handler, route: str, turns: asyncio.Lock) -> None:
        """
        Args:
            turns: shared by all routes: of many requests that come at once, one begins at a time, and others that are
                there already go on in between.
        """
        self._service, self._handler, self._route, self._turns = service, handler, route, turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.perf_counter()
        id_ = secrets.token_hex(16)
        call = Call(self._service, {}, scope["path_params"], id_, arrived, int(time.time()))
        answer = _Answer(send, id_)
        try:
            if scope["method"] == "POST":
                content = await read_body(
                    Headers(scope=scope), receive, self._service.config.max_body_bytes, _SECONDS_FOR_A_BODY
                )
                async with self._turns:
                    await asyncio.sleep(0)
                # A long one in a thread: others are answered meanwhile.
                call.body = parsed(content) if len(content) < _SMALL_BODY else await asyncio.to_thread(parsed, content)
            await _unless_gone(receive, self._work(call, answer))
        except ConnectionError:
            answer.status = answer.status or 499  # nginx's word for a client that left
        except Exception as error:
            await answer.fail(_as_api_error(error, id_))
        finally:
            call.close()
            self._count(call, answer.status, time.perf_counter() - arrived)

    async def _work(self, call: Call, answer: "_Answer") -> None:
        seconds = self._service.config.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                result = await self._handler(call)
                await (answer.send(result) if isinstance(result, Reply) else answer.stream(result))
        except TimeoutError:
            raise ApiError(
                f"the request was not answered within {seconds:g} seconds",
                status=504,
                code="timeout",
                headers={"x-should-retry": "false"},
            ) from None

    def _count(self, call: Call, status: int, seconds: float) -> None:
        metrics = self._service.metrics
        metrics.requests[self._route, status] += 1
        metrics.request_time.add(seconds)
        if self._route not in ("/health", "/metrics"):
            # The route, not the path: nothing that a client wrote comes into the log.
            _log.info("%s %s in %.3f s (%s)", self._route, status, seconds, call.id)


class _Answer:
    """Sends an answer; knows how far it has come."""

    def __init__(self, send: Send, id_: str) -> None:
        self._send, self._id = send, id_
        self._events: Events | None = None
        self.status = 0

    async def send(self, reply: Reply) -> None:
        """All at once."""
        content = reply.bytes
        await self._start(reply.status, reply.kind, {"content-length": str(len(content)), **reply.headers})
        await self._send({"type": "http.response.body", "body": content})

    async def stream(self, events: Events) -> None:
        """Event by event; waits for a client that reads slowly."""
        self._events = events
        quick = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        await self._start(200, "text/event-stream; charset=utf-8", {**quick, **events.headers})
        async with contextlib.aclosing(events.objects) as objects:
            async for each in objects:
                await self._send({"type": "http.response.body", "body": events.encoded(each), "more_body": True})
        await self._send({"type": "http.response.body", "body": events.end})

    async def fail(self, error: ApiError) -> None:
        """An error: as the answer, or as the last event of a stream that has begun."""
        if self.status == 0:
            await self.send(Reply(error.body, error.status, headers=error.headers))
        elif self._events is not None:
            body = b"data: " + json_text(error.body) + b"\n\n"
            await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.status = status
        everywhere = {"content-type": kind, "x-request-id": self._id, "x-content-type-options": "nosniff"}
        pairs = [(name.encode(), value.encode()) for name, value in {**everywhere, **headers}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Do the work, unless the client leaves before.

    Raises:
        ConnectionError: it has left.
    """

    async def leaving() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = working, asyncio.create_task(leaving())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ConnectionError
        await working
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _as_api_error(error: Exception, id_: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return of_user_error(error)
    _log.error("%s: %s", id_, where_raised(error))
    return ApiError(f"the server failed; its log says where, at {id_}", status=500)


def route_table() -> list[tuple[str, str]]:
    """Method and path of every route."""
    return [(method, path) for method, path, _ in ROUTES]
