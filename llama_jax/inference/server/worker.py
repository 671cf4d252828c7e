"""The thread that owns the engine, and the buffers through which its tokens come to the event loop."""

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.inference.engine import Engine, NewToken, Request
from llama_jax.inference.server.errors import ApiError, of_user_error

MOST_UNREAD = 1024
"""Tokens that a stream holds for a client that does not read; beyond, its answers are cancelled."""
_log = logging.getLogger("llama_jax.serve")


class Stream:
    """The tokens of the answers to one request, not read yet. Used by the event loop alone."""

    def __init__(self) -> None:
        self._tokens: deque[tuple[int, NewToken]] = deque()
        self._error: ApiError | None = None
        self._came = asyncio.Event()

    def feed(self, tokens: Sequence[tuple[int, NewToken]]) -> bool:
        """Add tokens, each with the number of its answer. False: too many are unread, and the stream has failed."""
        self._tokens += tokens
        self._came.set()
        if len(self._tokens) <= MOST_UNREAD or self._error is not None:
            return True
        self.fail(ApiError(f"more than {MOST_UNREAD} tokens were not read; read faster", status=503))
        return False

    def fail(self, error: ApiError) -> None:
        """End the stream: what is unread is dropped."""
        self._error = self._error or error
        self._tokens.clear()
        self._came.set()

    async def take(self) -> list[tuple[int, NewToken]]:
        """All tokens that have come since; waits for one.

        Raises:
            ApiError: the stream has failed.
        """
        await self._came.wait()
        if self._error is not None:
            raise self._error
        self._came.clear()
        taken = list(self._tokens)
        self._tokens.clear()
        return taken


class Worker(threading.Thread):
    """Runs the engine. Other threads give it commands, which it follows between two steps.

    Args:
        make_engine: called in this thread, at the start and when a step has failed.
        context: what holds while the engine is used, such as the mesh, which belongs to a thread.
    """

    def __init__(self, make_engine: Callable[[], Engine], context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(name="engine", daemon=True)
        self._make_engine, self._context = make_engine, context
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._places: dict[int, tuple[Stream, int]] = {}
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ready = threading.Event()
        """Set when the engine can be used, or could not be made."""
        self.failure: BaseException | None = None
        """What ended this thread."""
        self.waiting = self.active = 0
        """Answers that wait for a slot, and that have one, after the last step."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say where streams live; called before the first of them."""
        self._loop = loop

    async def submit(self, requests: Sequence[Request], stream: Stream) -> None:
        """Have the engine answer; the number of an answer in the stream is that of its request here.

        Raises:
            ApiError: a request can never be answered; none of them is.
        """
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commands.put(functools.partial(self._submit, requests, stream, accepted))
        await accepted

    def cancel(self, stream: Stream, number: int | None = None) -> None:
        """End an answer of a stream, or all. What was not accepted yet will be, and ended at once."""
        self._commands.put(functools.partial(self._cancel, stream, number))

    def stop(self) -> None:
        """End the thread after the present step."""

        def end() -> None:
            self._stopping = True

        self._commands.put(end)

    def run(self) -> None:
        """Follow commands, and step while there is something to do."""
        try:
            with self._context():
                self._engine = self._make_engine()
                self.ready.set()
                while not self._stopping:
                    self._follow_commands()
                    self._step()
        except BaseException as error:
            self.failure = error
            self._fail_all()
        finally:
            self.ready.set()

    def _follow_commands(self) -> None:
        """Those that have come; where nothing else is to be done, wait for one."""
        idle = not self._places
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get(block=idle)()
                idle = idle and not self._places and not self._stopping

    def _step(self) -> None:
        try:
            made = self._engine.step() if self._places else []
        except Exception as error:
            _log.error("a step of the engine failed: %s", where_raised(error))
            self._fail_all()
            self._engine = self._make_engine()  # the arrays of the old one may be half written
            made = []
        self.waiting, self.active = self._engine.waiting, self._engine.active
        made = [token for token in made if token.handle in self._places]  # the others' clients have left
        if made:
            self._call(self._deliver, [(*self._places[token.handle], token) for token in made])
        for token in made:
            if token.finish is not None:
                del self._places[token.handle]

    def _deliver(self, made: Sequence[tuple[Stream, int, NewToken]]) -> None:
        for stream, number, token in made:
            if not stream.feed([(number, token)]):
                self.cancel(stream)

    def _submit(self, requests: Sequence[Request], stream: Stream, accepted: "asyncio.Future[None]") -> None:
        for number, request in enumerate(requests):
            try:
                handle = self._engine.submit(request)
            except UserError as error:
                self._cancel(stream, None)
                return self._call(_settle, accepted, of_user_error(error))
            self._places[handle] = stream, number
        return self._call(_settle, accepted, None)

    def _cancel(self, stream: Stream, number: int | None) -> None:
        for handle, place in list(self._places.items()):
            if place[0] is stream and number in (None, place[1]):
                self._engine.cancel(handle)
                del self._places[handle]
        self.waiting, self.active = self._engine.waiting, self._engine.active

    def _fail_all(self) -> None:
        for stream in {stream for stream, _ in self._places.values()}:
            self._call(stream.fail, ApiError("the engine failed; the server's log says where", status=500))
        self._places.clear()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop call a function."""
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(accepted: "asyncio.Future[None]", error: ApiError | None) -> None:
    if accepted.done():  # its client has left
        return
    if error is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(error)


def where_raised(error: BaseException) -> str:
    """Kind and place of an error, without its message: that may hold what somebody said."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' < '.join(reversed(places[-6:]))}"
