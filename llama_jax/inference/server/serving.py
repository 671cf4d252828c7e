"""The life of the server: from the model to the last answer."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import uvicorn

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.processes.signals import StopSignal
from llama_jax.inference.engine import Engine
from llama_jax.inference.server.answering.worker import Worker, where_raised
from llama_jax.inference.server.app import make_app
from llama_jax.inference.server.config import ServeConfig
from llama_jax.inference.server.connections import Connection
from llama_jax.inference.server.protocol.errors import ApiError
from llama_jax.inference.server.service import Service

KEY_VARIABLE = "LLAMA_JAX_API_KEY"
_SECONDS_FOR_A_STEP = 10.0


def read_api_key(config: ServeConfig) -> str | None:
    """The key that clients must know.

    Raises:
        UserError: the file has none, the key is no key, or others can connect and there is none.
    """
    if config.api_key_file is not None:
        where = f"--api_key_file {config.api_key_file}"
        try:
            lines = Path(config.api_key_file).read_bytes().decode().splitlines()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{where}: is not a text file that can be read") from None
        key = lines[0].strip() if lines else ""
    else:
        where = KEY_VARIABLE
        if (key := os.environ.get(KEY_VARIABLE)) is None:
            if not config.is_local:
                raise UserError(
                    f"--host {config.host}: others can connect, so an API key is needed; set {KEY_VARIABLE}, or "
                    "--api_key_file"
                )
            return None
    if len(key) < 8 or not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{where}: the key must have at least 8 characters, of ASCII and without spaces")
    return key


def bound_socket(config: ServeConfig) -> socket.socket:
    """A socket at the address; before the model is opened, so that nobody waits for nothing.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise UserError(f"--host {config.host} --port {config.port}: {str(error.strerror).lower()}") from None
    return made


def start_service(config: ServeConfig, opened: OpenModel, layers: PyTree) -> Service:
    """The service of an opened model, on the mesh in use, with its engine warm.

    Args:
        layers: its parameters in the list layout; those of `opened` are not looked at.

    Raises:
        UserError: the settings do not fit the model.
    """
    if jax.process_count() > 1:
        raise UserError(f"serve: {jax.process_count()} processes cannot serve one model; start one")
    context_length = opened.model.config.context_length
    if config.length is not None and config.length > context_length:
        raise UserError(f"--length {config.length}: the model's context is {context_length}")
    mesh = jax.sharding.get_mesh()
    cache_dtype = jnp.dtype(config.cache_dtype) if config.cache_dtype else None

    def make_engine() -> Engine:
        engine = Engine(opened.model, layers, slots=config.slots, length=config.length, cache_dtype=cache_dtype)
        engine.warm_up()
        return engine

    worker = Worker(make_engine, lambda: jax.set_mesh(mesh))
    service = Service(opened, worker, config)
    worker.start()
    worker.ready.wait()
    if worker.failure is not None:
        raise worker.failure
    return service


def serve_until_stopped(
    service: Service, api_key: str | None, listener: socket.socket, say: Callable[[str], None]
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then those that have begun, as long as the settings say.

    Raises:
        CannotGoOnError: the engine failed for good.
    """
    _log_to_standard_error()

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        says = "ending when the answers that have begun are written; again ends at once"

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        with StopSignal(on_request=end, says=says):
            host, port = listener.getsockname()[:2]
            say(f"serving {', '.join(service.models)} at http://{f'[{host}]' if ':' in host else host}:{port}")
            await serve(service, api_key, listener, stop)

    asyncio.run(run())
    if service.worker.failure is not None:
        raise CannotGoOnError(f"the engine failed: {where_raised(service.worker.failure)}")


def _log_to_standard_error() -> None:
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("llama_jax.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(shown)
        logger.propagate = False  # libraries give the root logger handlers of their own


async def serve(service: Service, api_key: str | None, listener: socket.socket, stop: asyncio.Event) -> None:
    """Answer requests until `stop` is set, and the worker's thread with it."""
    service.worker.attach(asyncio.get_running_loop())
    server = _Server(
        uvicorn.Config(
            make_app(service, api_key),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    ending = asyncio.create_task(_end_well(service, server, stop))
    try:
        await server.serve(sockets=[listener])
    finally:
        ending.cancel()
        service.worker.stop()
        await asyncio.to_thread(service.worker.join, _SECONDS_FOR_A_STEP)


async def _end_well(service: Service, server: uvicorn.Server, stop: asyncio.Event) -> None:
    """Wait for the end to be asked for, or the worker to die; then refuse what is new until what is old is done, and
    end the rest."""
    while not stop.is_set() and service.worker.is_alive():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
    service.draining = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.config.shutdown_timeout_seconds):
            while service.worker.open_answers:
                await asyncio.sleep(0.05)
    service.worker.fail_all(ApiError("the server ends", status=503))
    server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's server; signals are heard elsewhere."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would end at once, and send itself the signal again in the end."""
        yield
