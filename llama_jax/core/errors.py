"""The exceptions that commands tell apart by exit code. `UserError` means "the user can fix this": shown as one line,
without a traceback, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a configuration, a file or an argument. The message is one line that names the field or file,
    the value found, and what would be right."""


class CannotGoOnError(Exception):
    """Something outside the program keeps a run from continuing; shown as one line, exit code 1."""


class SaveFailedError(CannotGoOnError):
    """Checkpoints could not be written several times in a row, so continuing would only waste compute."""


class SavedAfterSignal(Exception):
    """The process was asked to end and saved its state first. Exit code 75: run the same command to resume."""

    def __init__(self, message: str = "interrupted: saved; run the same command to resume") -> None:
        super().__init__(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"` for the known name closest to `name`, or nothing when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""
