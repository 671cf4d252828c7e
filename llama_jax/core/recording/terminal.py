"""What a person sees while something runs: one live line on a terminal, elsewhere a line now and then."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from llama_jax.core.recording.metrics import MetricsRecord


class LiveLine:
    """A line that is rewritten in place on a terminal. Elsewhere it is printed anew, at most every so often."""

    def __init__(self, say: Callable[[str], None], *, seconds_between_lines: float = 20.0, console: Any = None) -> None:
        """
        Args:
            say: prints one line where there is no terminal.
            seconds_between_lines: least time between two of those.
            console: a `rich.console.Console`; standard output by default.
        """
        from rich.console import Console  # 0.1 s that only what shows progress should pay

        self._say, self._seconds_between_lines = say, seconds_between_lines
        self._console: Console = console or Console()
        self._live: Any = None
        self._said = time.monotonic()

    @property
    def on_terminal(self) -> bool:
        """Whether the line is rewritten in place."""
        return self._console.is_terminal

    def update(self, line: Callable[[], str]) -> None:
        """Show a newer line, if it is time for one; may be called as often as there is news."""
        if self.on_terminal:
            self._rewrite(line())
        elif (now := time.monotonic()) - self._said >= self._seconds_between_lines:
            self._said = now
            self._say(line())

    def close(self, last: str | None = None) -> None:
        """Leave the last state on the screen.

        Args:
            last: a line to end with, which is always shown.
        """
        if last is not None and self.on_terminal:
            self._rewrite(last)
        elif last is not None:
            self._say(last)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _rewrite(self, line: str) -> None:
        from rich.live import Live
        from rich.text import Text

        text = Text(line, no_wrap=True, overflow="ellipsis")
        if self._live is None:
            self._live = Live(text, console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(text)


class Terminal:
    """Progress for people: one live line on a terminal, elsewhere a line now and then."""

    def __init__(self, total_steps: int, log_every: int, say: Callable[[str], None], *, console: Any = None) -> None:
        """Show progress.

        Args:
            total_steps: the step the run ends at.
            log_every: steps between two lines where the output is not a terminal.
            say: prints one line and may keep it in a log.
            console: a `rich.console.Console`; standard output by default.
        """
        self._total, self._log_every, self._say = total_steps, log_every, say
        self._line = LiveLine(say, console=console)
        self._step_seconds: float | None = None

    def write(self, record: MetricsRecord) -> None:
        """Show one step."""
        step = int(record["step"] or 0)
        if seconds := record.get("step_seconds"):
            # Compilation makes the first step slow, so the mean starts anew as soon as a step is much faster.
            slow = self._step_seconds is None or self._step_seconds > 5 * seconds
            self._step_seconds = float(seconds) if slow else 0.95 * (self._step_seconds or 0) + 0.05 * seconds
        if self._line.on_terminal:
            self._line.update(lambda: self._text(step, record, _SHOWN_LIVE))
            if record.get("validation_loss") is not None:
                # The live line, while it is shown, redirects standard output to above itself.
                self._say(f"step {step}: {_validation(record)}")
        elif step % self._log_every == 0 or step == self._total or record.get("validation_loss") is not None:
            self._say(self._text(step, record, _SHOWN))

    def close(self) -> None:
        """Leave the last state of the live line on the screen."""
        self._line.close()

    def _text(self, step: int, record: MetricsRecord, shown: Mapping[str, str]) -> str:
        parts = [f"step {step:,}/{self._total:,} ({100 * step / self._total:.0f}%)"]
        for name, form in shown.items():
            if (value := record.get(name)) is not None:
                parts.append(form.format(value))
        if record.get("validation_loss") is not None and shown is _SHOWN:
            parts.append(_validation(record))
        wait, seconds = record.get("data_wait_seconds"), record.get("step_seconds")
        if wait is not None and seconds and shown is _SHOWN:
            parts.append(f"data wait {wait / seconds:.0%}")
        if record.get("skipped_updates"):
            parts.append(f"skipped updates {record['skipped_updates']}")
        if self._step_seconds is not None and step < self._total:
            parts.append(f"ETA {duration((self._total - step) * self._step_seconds)}")
        return " | ".join(parts)


_SHOWN = {
    "loss": "loss {:.4f}",
    "reward": "reward {:.4f}",
    "held_out_reward": "held out {:.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:.3f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "model_flops_utilization": "MFU {:.1%}",
}
_SHOWN_LIVE = {name: _SHOWN[name] for name in ("loss", "reward", "tokens_per_second", "model_flops_utilization")}
"""Fewer, so that the line with its ETA fits a terminal 80 columns wide."""


def _validation(record: MetricsRecord) -> str:
    bits = record.get("validation_bits_per_byte")
    return f"validation loss {record['validation_loss']:.4f}" + ("" if bits is None else f", {bits:.4f} bits/byte")


def duration(seconds: float) -> str:
    """How long something takes, in the unit that suits."""
    minutes, hours = math.ceil(seconds / 60), int(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{hours} h {int(seconds / 60) % 60:02d} min"
