"""Who may come in: those who know the key, to a server that is not about to end."""

import base64
import binascii
import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_jax.inference.server.protocol.errors import ApiError
from llama_jax.inference.server.protocol.replies import json_text
from llama_jax.inference.server.service import Service

_OPEN = "/health"
_HANDLED_PER_SLOT, _HANDLED = 4, 64


class Guard:
    """Middleware before all routes.

    With a key, every path but `/health` needs it: as `Authorization: Bearer KEY`, or as the password of Basic, which is
    how a browser asks for it before it shows the page. Without one, only requests to this machine by one of its own
    names are answered: a page from elsewhere, whose name was made to lead here, is not.
    """

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None) -> None:
        self._app, self._service, self._api_key = app, service, api_key
        self._handled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _OPEN:
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            self._service.metrics.requests["refused before any route", error.status] += 1
            await _refuse(error, send)
            return
        self._handled += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._handled -= 1

    def _check(self, path: str, headers: Headers) -> None:
        if self._api_key is None:
            host = headers.get("host", "")
            if not _is_of_this_machine(host):
                raise ApiError("host: is not a name of this machine; use localhost", status=403)
        elif not _knows(headers.get("authorization", ""), self._api_key):
            ask = "Basic realm=llama_jax, charset=UTF-8" if path == "/" else "Bearer"
            message = "authorization: the API key is missing or wrong; send Authorization: Bearer KEY"
            raise ApiError(message, status=401, code="invalid_api_key", headers={"www-authenticate": ask})
        if self._service.draining:
            raise ApiError("the server is about to end", status=503, headers={"retry-after": "5"})
        # Requests that are still being read hold memory too.
        config = self._service.config
        if self._handled >= _HANDLED_PER_SLOT * (config.slots + config.max_queue) + _HANDLED:
            raise ApiError("too many requests at once; try again later", status=429, headers={"retry-after": "1"})


async def _refuse(error: ApiError, send: Send) -> None:
    content = json_text(error.body)
    headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


def _knows(authorization: str, api_key: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    sent = given.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            sent = base64.b64decode(sent, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(sent, api_key.encode())


def _is_of_this_machine(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"
