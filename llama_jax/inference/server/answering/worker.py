"""The thread that owns the engine, and the buffers through which its tokens come to the event loop."""

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.inference.engine import Engine, NewToken, Request
from llama_jax.inference.server.protocol.errors import ApiError, of_user_error

MOST_UNREAD = 1024
"""Tokens that a stream holds for a client that does not read; beyond, its answers are cancelled."""
MOST_AT_ONCE = 4
"""Tokens that become one event."""
_ENGINE_FAILED = ApiError("the engine failed; the server's log says where", status=500)
_log = logging.getLogger("llama_jax.serve")


class Stream:
    """The tokens of the answers to one request, not read yet. Used by the event loop alone."""

    def __init__(self, answers: int) -> None:
        self.unfinished = set(range(answers))
        """Numbers of the answers that the engine works on."""
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the engine has taken the requests, or the stream has failed before."""
        self._tokens: deque[tuple[int, NewToken]] = deque()
        self._error: ApiError | None = None
        self._came = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether its client reads too slowly."""
        return len(self._tokens) > MOST_UNREAD

    def feed(self, number: int, token: NewToken) -> None:
        """Add a token of an answer."""
        self._tokens.append((number, token))
        if token.finish is not None:
            self.unfinished.discard(number)
        self._came.set()

    def accept(self) -> None:
        """The engine has taken the requests."""
        if not self.accepted.done():
            self.accepted.set_result(None)

    def fail(self, error: ApiError) -> None:
        """End the stream: what is unread is dropped."""
        self._error = self._error or error
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # noted as seen: its client may have left
        self.unfinished.clear()
        self._tokens.clear()
        self._came.set()

    async def take(self) -> list[tuple[int, NewToken]]:
        """Tokens that have come since, at most `MOST_AT_ONCE`; waits for one.

        Raises:
            ApiError: the stream has failed.
        """
        await asyncio.sleep(0)  # others are answered between two events, even where many wait to be sent
        await self._came.wait()
        if self._error is not None:
            raise self._error
        taken = [self._tokens.popleft() for _ in range(min(MOST_AT_ONCE, len(self._tokens)))]
        if not self._tokens:
            self._came.clear()
        return taken


class Worker(threading.Thread):
    """Runs the engine. The event loop gives it commands, which it follows between two steps.

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
        self._streams: set[Stream] = set()  # of the event loop
        self.ready = threading.Event()
        """Set when the engine can be used, or could not be made."""
        self.failure: BaseException | None = None
        """What ended this thread."""
        self.waiting = self.active = 0
        """Answers that wait for a slot, and that have one, after the last step."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say where streams live; called before the first of them."""
        self._loop = loop

    @property
    def open_answers(self) -> int:
        """Answers that were asked for and have not ended."""
        return sum(len(stream.unfinished) for stream in self._streams)

    async def submit(self, requests: Sequence[Request], stream: Stream) -> None:
        """Have the engine answer; the number of an answer in the stream is that of its request here.

        Raises:
            ApiError: a request can never be answered; none of them is.
        """
        self._streams.add(stream)
        self._commands.put(functools.partial(self._submit, requests, stream))
        if not self.is_alive():
            self.fail_all(_ENGINE_FAILED)
        await stream.accepted

    def cancel(self, stream: Stream, number: int | None = None) -> None:
        """End an answer of a stream, or all. What was not accepted yet will be, and ended at once."""
        numbers = set(stream.unfinished) if number is None else stream.unfinished & {number}
        stream.unfinished -= numbers
        self._forget_finished([stream])
        if numbers:
            self._commands.put(functools.partial(self._cancel, stream, numbers))

    def fail_all(self, error: ApiError) -> None:
        """End all answers with an error."""
        for stream in list(self._streams):
            self.cancel(stream)
            stream.fail(error)

    def stop(self) -> None:
        """End the thread after the present step."""

        def end() -> None:
            self._stopping = True

        self._commands.put(end)

    def _deliver(self, made: Sequence[tuple[Stream, int, NewToken]]) -> None:
        for stream, number, token in made:
            stream.feed(number, token)
        streams = {stream for stream, _, _ in made}
        for stream in streams:
            if stream.is_full:
                self.cancel(stream)
                stream.fail(ApiError(f"more than {MOST_UNREAD} tokens were not read; read faster", status=503))
        self._forget_finished(streams)

    def _refuse(self, stream: Stream, error: ApiError) -> None:
        stream.fail(error)
        self._forget_finished([stream])

    def _forget_finished(self, streams: Iterable[Stream]) -> None:
        self._streams -= {stream for stream in streams if not stream.unfinished}

    # From here on, what the thread does.

    def run(self) -> None:
        """Follow commands, and step while there is something to do."""
        try:
            with self._context():
                self._engine = self._make_engine()
                self.ready.set()
                while not self._stopping:
                    try:
                        self._follow_commands()
                        self._step()
                    except Exception as error:
                        _log.error("the engine failed: %s", where_raised(error))
                        self._places.clear()
                        self._call(self.fail_all, _ENGINE_FAILED)
                        del self._engine  # its arrays may be half written
                        self._engine = self._make_engine()
        except BaseException as error:
            self.failure = error
            if self._loop is not None:
                self._call(self.fail_all, _ENGINE_FAILED)
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
        made = self._engine.step() if self._places else []
        self.waiting, self.active = self._engine.waiting, self._engine.active
        made = [token for token in made if token.handle in self._places]  # the others' clients have left
        if made:
            self._call(self._deliver, [(*self._places[token.handle], token) for token in made])
        for token in made:
            if token.finish is not None:
                del self._places[token.handle]

    def _submit(self, requests: Sequence[Request], stream: Stream) -> None:
        try:
            for number, request in enumerate(requests):
                self._places[self._engine.submit(request)] = stream, number
        except UserError as error:
            self._cancel(stream, range(len(requests)))
            self._call(self._refuse, stream, of_user_error(error))
        else:
            self._call(stream.accept)

    def _cancel(self, stream: Stream, numbers: Collection[int]) -> None:
        for handle, (owner, number) in list(self._places.items()):
            if owner is stream and number in numbers:
                del self._places[handle]
                self._engine.cancel(handle)
        self.waiting, self.active = self._engine.waiting, self._engine.active

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop call a function."""
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function, *arguments)


def where_raised(error: BaseException) -> str:
    """Kind and place of an error, without its message: that may hold what somebody said."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' < '.join(reversed(places[-6:]))}"
