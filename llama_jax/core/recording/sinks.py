"""Where the numbers of a run go: a JSON Lines file, TensorBoard, the terminal, and Weights & Biases where that is asked
for. Does not know what they mean, except for how to show them."""

import json
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import GrowingFile, is_remote, write_whole

Record: TypeAlias = Mapping[str, Any]
"""One training step: `step` and other numbers by name, or numbers by name below a name. None: not known."""


class Sink(Protocol):
    """A place that takes one record a step."""

    def write(self, record: Record) -> None:
        """Take the record of the next step."""
        ...

    def close(self) -> None:
        """Finish; nothing is written after this."""
        ...


class JsonLines:
    """`metrics.jsonl`: one object a line, each step exactly once, also after a resume.

    Floats are exact. JSON has no non-finite numbers, so those are the strings "NaN", "Infinity" and "-Infinity";
    `read_metrics` turns them back into floats.
    """

    def __init__(self, path: epath.PathLike, resume_step: int, *, rewrite_seconds: float | None = None) -> None:
        """Go on after step `resume_step` (0: start anew): lines of later steps and broken lines are dropped.

        Args:
            path: the file. A remote one is written at most once a minute and at the end, since it cannot append.
            resume_step: the last step that is part of the run.
            rewrite_seconds: see `GrowingFile`.
        """
        last = -1

        def keep(line: str) -> bool:
            nonlocal last
            step = (_parsed(line) or {}).get("step", -1)
            if not last < step <= resume_step:
                return False
            last = step
            return True

        self._file = GrowingFile(path, keep=keep, rewrite_seconds=rewrite_seconds)

    def write(self, record: Record) -> None:
        """Add one line; on a local disk it is there when this returns."""
        self._file.write(json.dumps({key: _finite_or_name(value) for key, value in record.items()}, allow_nan=False))

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, without a last line that is still being written."""
    path = epath.Path(path)
    text = path.read_text() if path.exists() else ""
    return [record for line in text.splitlines() if (record := _parsed(line)) is not None]


def _flat(record: Record) -> dict[str, float | int | None]:
    """The numbers below a name as `name/below`."""
    flat: dict[str, float | int | None] = {}
    for name, value in record.items():
        below = (
            {f"{name}/{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {name: value}
        )
        flat.update(below)
    return flat


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _finite_or_name(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_name(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _parsed(line: str) -> dict[str, Any] | None:
    """The record on a line; None for a broken one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


class TensorBoard:
    """Event files for TensorBoard: one scalar for each number of a record."""

    def __init__(self, directory: epath.PathLike, resume_step: int, say: Callable[[str], None]) -> None:
        """Go on after step `resume_step`; TensorBoard then hides what an earlier run of the process wrote after it.

        Args:
            directory: made if missing. On a remote path nothing is written, and `say` is told so.
            resume_step: the last step that is part of the run.
            say: prints one line.
        """
        self._writer: Any = None
        if is_remote(directory):
            say(f"TensorBoard files are not written to {directory}; metrics.jsonl there has the same numbers")
            return
        from tensorboardX import SummaryWriter  # 0.3 s that only training should pay

        self._writer = SummaryWriter(logdir=str(directory), purge_step=resume_step + 1)

    def write(self, record: Record) -> None:
        """Add the scalars of one step."""
        for name, value in _flat(record).items():
            if self._writer is not None and name != "step" and value is not None:
                self._writer.add_scalar(name, value, global_step=record["step"])

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases with the numbers of each record. The only sink that contacts another machine; imports
    the package when one is made."""

    def __init__(self, directory: epath.PathLike, project: bool | str, config: Mapping[str, Any]) -> None:
        """Begin a run there, or go on with the one that this run directory began.

        Its id is kept in `wandb_id.txt`; steps that it already has, up to the one before an interruption, it keeps as
        they are. Neither source code nor what the terminal shows is sent.

        Args:
            directory: the run directory, which gives the run its name; files of the package go below it (those of a
                remote one below the current directory).
            project: PROJECT or ENTITY/PROJECT; True: `llama_jax`.
            config: the configuration, as plain values.

        Raises:
            UserError: the package is missing, or its servers refuse.
        """
        try:
            import wandb
        except ImportError:
            raise UserError("tracking.wandb: needs the package wandb; pip install 'llama_jax[wandb]'") from None
        entity, _, name = ("llama_jax" if project is True else str(project)).rpartition("/")
        directory = epath.Path(directory)
        id_file = directory / "wandb_id.txt"
        if not id_file.exists():
            write_whole(id_file, f"{secrets.token_hex(6)}\n")
        try:
            self._run = wandb.init(
                entity=entity or None,
                project=name,
                id=id_file.read_text().strip(),
                resume="allow",
                name=directory.name,
                dir=None if is_remote(directory) else str(directory),
                config=dict(config),
                settings=wandb.Settings(console="off", disable_git=True, save_code=False),
            )
        except wandb.Error as error:
            raise UserError(f"tracking.wandb: {error}; log in by `wandb login`, or set WANDB_MODE=offline") from None

    def write(self, record: Record) -> None:
        """Hand the numbers of one step over; they are sent by another process."""
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        self._run.log(numbers, step=record["step"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


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
        from rich.console import Console

        self._total, self._log_every, self._say = total_steps, log_every, say
        self._console: Console = console or Console()
        self._live: Any = None
        self._step_seconds: float | None = None

    def write(self, record: Record) -> None:
        """Show one step."""
        step = int(record["step"] or 0)
        if seconds := record.get("step_seconds"):
            # Compilation makes the first step slow, so the mean starts anew as soon as a step is much faster.
            slow = self._step_seconds is None or self._step_seconds > 5 * seconds
            self._step_seconds = float(seconds) if slow else 0.95 * (self._step_seconds or 0) + 0.05 * seconds
        if self._console.is_terminal:
            self._show(self._line(step, record, _SHOWN_LIVE))
            if record.get("validation_loss") is not None:
                self.note(f"step {step}: {_validation(record)}")
        elif step % self._log_every == 0 or step == self._total or record.get("validation_loss") is not None:
            self._say(self._line(step, record, _SHOWN))

    def note(self, text: str) -> None:
        """Print a line; a live line stays below it."""
        self._say(text)  # while it is shown, the live line redirects standard output to above itself

    def close(self) -> None:
        """Leave the last state of the live line on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, line: str) -> None:
        from rich.live import Live
        from rich.text import Text

        text = Text(line, no_wrap=True, overflow="ellipsis")
        if self._live is None:
            self._live = Live(text, console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(text)

    def _line(self, step: int, record: Record, shown: Mapping[str, str]) -> str:
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
            parts.append(f"ETA {_duration((self._total - step) * self._step_seconds)}")
        return " | ".join(parts)


_SHOWN = {
    "loss": "loss {:.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:.3f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "model_flops_utilization": "MFU {:.1%}",
}
_SHOWN_LIVE = {name: _SHOWN[name] for name in ("loss", "tokens_per_second", "model_flops_utilization")}
"""Fewer, so that the line with its ETA fits a terminal 80 columns wide."""


def _validation(record: Record) -> str:
    bits = record.get("validation_bits_per_byte")
    return f"validation loss {record['validation_loss']:.4f}" + ("" if bits is None else f", {bits:.4f} bits/byte")


def _duration(seconds: float) -> str:
    minutes, hours = math.ceil(seconds / 60), int(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{hours} h {int(seconds / 60) % 60:02d} min"
