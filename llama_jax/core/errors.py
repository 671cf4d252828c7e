"""The exceptions that commands tell apart by exit code. `UserError` means "the user can fix this": shown as one line,
without a traceback, exit code 2."""

import difflib
import errno
import re
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


_OF_A_PATH = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EXDEV,
)
_OF_A_LIMIT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE = "No space left on device"


def of_the_machine(error: Exception) -> UserError | CannotGoOnError | None:
    """What is no fault of the program, wherever it comes up: a path that cannot be used so, a disk that is full. None:
    something else."""
    if (isinstance(error, OSError) and error.errno in _OF_A_LIMIT) or _NO_SPACE in str(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename is not None else ""
        too_large = isinstance(error, OSError) and error.errno == errno.EFBIG
        return CannotGoOnError(f"{where}{'larger than a file may be here' if too_large else 'no space left on device'}")
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # of numpy
        return CannotGoOnError("a file could not be written to its end; is the disk full?")
    if isinstance(error, OSError) and error.errno in _OF_A_PATH and error.filename is not None:
        where = error.filename if error.filename2 is None else f"{error.filename} -> {error.filename2}"
        return UserError(f"{where}: {str(error.strerror).lower()}")
    if isinstance(error, KeyError) and str(error.args[0]).endswith("://"):  # of etils.epath
        return UserError(f"{error.args[0]}: paths of this kind cannot be opened; copy to a local disk what is there")
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"` for the known name closest to `name`, or nothing when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""
