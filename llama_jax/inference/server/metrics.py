"""What the server counts, as the text that Prometheus reads."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "llama_jax_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """How often values lay at or below each bound."""

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """Its lines: the counts add up from bound to bound."""
        total, lines = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum}", f"{name}_count {total}"]


class Metrics:
    """Counters, histograms, and gauges that are asked when somebody looks."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status."""
        self.prompt_tokens = self.generated_tokens = self.cancelled_answers = 0
        self.time_to_first_token = Histogram()
        """From the arrival of a request."""
        self.time_per_token = Histogram()
        """Between a token and the one before."""
        self.request_time = Histogram()
        self.seconds_per_answer = 1.0
        """From the first token to the last; an average in which the last ten answers or so count."""
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        """By name: what it says, and what gives it."""

    def took(self, seconds: float) -> None:
        """Count an answer that took so long, from its first token to its last."""
        self.seconds_per_answer += 0.1 * (seconds - self.seconds_per_answer)

    def text(self) -> str:
        """The exposition format, version 0.0.4."""
        lines: list[str] = []

        def family(name: str, kind: str, says: str) -> str:
            lines.extend((f"# HELP {_PREFIX}{name} {says}", f"# TYPE {_PREFIX}{name} {kind}"))
            return _PREFIX + name

        name = family("requests_total", "counter", "Requests answered, by route and status.")
        lines += [
            f'{name}{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        for field, says in (
            ("prompt_tokens", "Tokens of prompts that were accepted."),
            ("generated_tokens", "Tokens generated."),
            ("cancelled_answers", "Answers ended before their end: the client left, or time was up."),
        ):
            name = family(f"{field}_total", "counter", says)
            lines.append(f"{name} {getattr(self, field)}")
        for field, says in (
            ("time_to_first_token", "From the arrival of a request to the first token of an answer."),
            ("time_per_token", "Between a token of an answer and the one before."),
            ("request_time", "From the arrival of a request to the end of its answer."),
        ):
            name = family(f"{field}_seconds", "histogram", says)
            lines += getattr(self, field).lines(name)
        for gauge, (says, value) in self.gauges.items():
            name = family(gauge, "gauge", says)
            lines.append(f"{name} {value():g}")
        return "\n".join(lines) + "\n"
