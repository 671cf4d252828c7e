"""The numbers of a run by step: what a record of them is, and the JSON Lines file that keeps all of them. Does not know
what they mean."""

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from etils import epath

from llama_jax.core.files import GrowingFile

MetricsRecord: TypeAlias = dict[str, Any]
"""One training step: `step` and other numbers by name, or numbers by name below a name. None: not known."""


class Sink(Protocol):
    """A place that takes one record a step."""

    def write(self, record: MetricsRecord) -> None:
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
        """Continue after step `resume_step`: lines of later steps and broken lines are dropped. 0 starts anew: no line
        is kept, not even one of step 0, which the run is about to write again.

        Args:
            path: the file. A remote one is written at most once a minute and at the end, since it cannot append.
            resume_step: the last step that is part of the run.
            rewrite_seconds: see `GrowingFile`.
        """
        last = -1

        def keep(line: str) -> bool:
            nonlocal last
            step = (_parsed(line) or {}).get("step", -1)
            if resume_step == 0 or not last < step <= resume_step:
                return False
            last = step
            return True

        self._file = GrowingFile(path, keep=keep, rewrite_seconds=rewrite_seconds)

    def write(self, record: MetricsRecord) -> None:
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


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _finite_or_name(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_name(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # its name
    return value


def _parsed(line: str) -> dict[str, Any] | None:
    """The record on a line; None for a broken one."""

    def with_floats(found: dict[str, Any]) -> dict[str, Any]:
        return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in found.items()}

    try:
        record = json.loads(line, object_hook=with_floats)
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
