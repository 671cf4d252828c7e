"""Connections that cost nothing: clients that are slow to ask, or do not read, are dropped."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 512  # a process may often have no more than 1024 files open
_SECONDS_FOR_HEADERS = 20.0
_SECONDS_UNREAD = 60.0


class Connection(H11Protocol):
    """uvicorn's connection, with a clock for what it waits for without end: the headers of a request, and a client that
    reads nothing while there is more to send."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False  # its lines would hold what clients write
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._headers_due = _stopped(self._headers_due)
        self._reading_due = _stopped(self._reading_due)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        super().data_received(data)
        self._await_headers()

    def pause_writing(self) -> None:
        """It does not read what is sent."""
        super().pause_writing()
        self._reading_due = self._reading_due or self.loop.call_later(_SECONDS_UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._reading_due = _stopped(self._reading_due)
        super().resume_writing()

    def _await_headers(self) -> None:
        """Have the headers of the next request arrive in time, all of them."""
        if self.conn.their_state is not h11.IDLE:
            self._headers_due = _stopped(self._headers_due)
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(_SECONDS_FOR_HEADERS, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
