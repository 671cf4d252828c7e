"""What may still be sent: money and requests per minute. Knows no protocol."""

import threading
import time
from collections.abc import Callable

from llama_jax.instruct.config import EndpointConfig

_MILLION = 1e6


class Budget:
    """Counts what answers cost. A request is admitted while what was spent, and what is under way at its most, is below
    the limit; so never more is spent than that and the price of one request."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self.spent = 0.0
        """US dollars."""
        self._under_way = 0.0

    def price(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars for so many tokens."""
        return (tokens_in * self._config.price_in + tokens_out * self._config.price_out) / _MILLION

    @property
    def admits(self) -> bool:
        """Whether one more request may begin."""
        return self._config.budget is None or self.spent + self._under_way < self._config.budget

    @property
    def is_spent(self) -> bool:
        """Whether none may begin, whatever comes of those under way."""
        return self._config.budget is not None and self.spent >= self._config.budget

    def begin(self, tokens_in: int, tokens_out: int) -> None:
        """A request that takes so many tokens at the most is under way."""
        self._under_way += self.price(tokens_in, tokens_out)

    def end(self, tokens_in: int, tokens_out: int) -> None:
        """It is no longer."""
        self._under_way = max(0.0, self._under_way - self.price(tokens_in, tokens_out))

    def spend(self, tokens_in: int, tokens_out: int) -> None:
        """So many tokens were paid for."""
        self.spent += self.price(tokens_in, tokens_out)


class Pace:
    """Keeps requests of several threads so far apart that a minute has no more of them than allowed."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self._apart = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Until the next request may be sent, or the run is to end."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._apart
        pause(turn - now, stopping)


def pause(seconds: float, stopping: Callable[[], bool]) -> None:
    """Wait so long, but not when the run is to end."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left, 0.2))
