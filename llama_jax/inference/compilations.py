"""Counting the programs that JAX compiles, or takes from its cache of compiled ones."""

import threading

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_OF_THREAD = threading.local()


def compilations() -> int:
    """Those of the calling thread, since this module was imported."""
    return getattr(_OF_THREAD, "count", 0)


def _count(event: str, duration_secs: float, **_: object) -> None:
    if event == _EVENT:
        _OF_THREAD.count = compilations() + 1


jax.monitoring.register_event_duration_secs_listener(_count)
