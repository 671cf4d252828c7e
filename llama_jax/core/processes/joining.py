"""Who of a job has come: asked before JAX joins the processes, which waits as long and does not say who is missing.

Process 0 listens where JAX's own service will listen a moment later. The others go there, say their numbers, and wait
to be told that all have come."""

import contextlib
import socket
import time
from collections.abc import Iterator

from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.processes.watchdog import tell_supervisor

_ALL = b"all\n"
_PAUSE_SECONDS = 0.2
_LINE_SECONDS = 1.0


def await_all(address: str, rank: int, count: int, seconds: int) -> None:
    """Return once all processes have called this, as far as it is known here.

    Args:
        address: `host:port` of process 0.

    Raises:
        CannotGoOnError: they have not within so many seconds; says who is missing.
    """
    deadline = time.monotonic() + seconds
    missing = _receive(int(address.rpartition(":")[2]), count, deadline) if rank == 0 else _go(address, rank, deadline)
    if missing:
        problem = f"{missing} did not come to {address} within {seconds:g} s (distributed.timeout_seconds)"
        tell_supervisor(rank, count, problem)
        tell_supervisor()
        raise CannotGoOnError(problem)


def _receive(port: int, count: int, deadline: float) -> str:
    """Wait for the others; gives who has not come."""
    missing, come = set(range(1, count)), contextlib.ExitStack()
    with _listening(port) as server, come:
        waiting: dict[int, socket.socket] = {}
        while missing and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # no line, or none of a process of ours
                connection = come.enter_context(server.accept()[0])
                connection.settimeout(_LINE_SECONDS)
                number = int(connection.recv(16))
                waiting[number] = connection
                missing.discard(number)
        answer = _ALL if not missing else f"{_named(missing)}\n".encode()
        for connection in waiting.values():
            with contextlib.suppress(OSError):
                connection.sendall(answer)
    return _named(missing)


def _go(address: str, rank: int, deadline: float) -> str:
    """Go to process 0 and wait; gives who has not come."""
    host, _, port = address.rpartition(":")
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), left) as connection:
            connection.sendall(f"{rank}\n".encode())
            connection.settimeout(left + _LINE_SECONDS)  # process 0, which began later, says who is missing
            answer = connection.recv(1 << 12)
            if answer == _ALL:
                return ""
            if answer.startswith(b"process"):
                return answer.decode().strip()
        time.sleep(_PAUSE_SECONDS)  # it is not there yet; or it is an earlier one, about to leave
    return "process 0"


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    if socket.has_dualstack_ipv6():
        server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", port))
    with server:
        yield server


def _named(ranks: set[int]) -> str:
    numbers = ", ".join(map(str, sorted(ranks)))
    return f"process {numbers}" if len(ranks) == 1 else f"processes {numbers}" if ranks else ""
