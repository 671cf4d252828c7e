"""What is no fault of the program is one line, whatever raised it."""

import errno
import os

import numpy as np
import pytest
from etils import epath

from llama_jax.core.errors import CannotGoOnError, UserError, of_the_machine


def error_of(call) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError


KNOWN = {
    "a directory for a file": (
        IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"),
        UserError,
        "a/b: is a directory",
    ),
    "a file in the way": (FileExistsError(errno.EEXIST, "File exists", "a"), UserError, "a: file exists"),
    "no right": (PermissionError(errno.EACCES, "Permission denied", "a"), UserError, "a: permission denied"),
    "two names": (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), UserError, "a -> b: invalid link"),
    "a full disk": (
        OSError(errno.ENOSPC, "No space left on device", "a"),
        CannotGoOnError,
        "a: no space left on device",
    ),
    "a limit on files": (
        OSError(errno.EFBIG, "File too large", "a"),
        CannotGoOnError,
        "a: larger than a file may be here",
    ),
    "a full quota": (OSError(errno.EDQUOT, "Quota exceeded", "a"), CannotGoOnError, "a: no space left on device"),
    "no name": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), CannotGoOnError, "no space left on device"),
    "numpy on a full disk": (
        error_of(lambda: np.zeros(10**5).tofile("/dev/full")),
        CannotGoOnError,
        "a file could not be written to its end; is the disk full?",
    ),
    "a path of no kind": (
        error_of(lambda: epath.Path("http://host/file").exists()),
        UserError,
        "http://: paths of this kind cannot be opened; copy to a local disk what is there",
    ),
    "a library's own class": (
        RuntimeError("INTERNAL: write: No space left on device [a.cc:12]"),
        CannotGoOnError,
        "no space left on device",
    ),
}


@pytest.mark.parametrize("fault", KNOWN)
def test_a_fault_of_the_machine_is_one_line(fault) -> None:
    error, kind, line = KNOWN[fault]
    found = of_the_machine(error)
    assert type(found) is kind and str(found) == line


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("x"), ConnectionResetError(errno.ECONNRESET, "x"), OSError(errno.ENOENT, "x")]
)
def test_other_errors_keep_their_traceback(error) -> None:
    assert of_the_machine(error) is None
