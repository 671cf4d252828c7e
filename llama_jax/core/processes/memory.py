"""What the C library does with memory that is given back to it."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Of glibc's `mallopt`."""


def keep_freed_memory() -> None:
    """Let this process use the memory that it has freed again, and not hand it back to the system. To be called before
    JAX starts its threads; does nothing where the C library is not glibc.

    XLA for CPU allocates the arrays of a program each time it runs. Those of a training step go beyond what glibc
    keeps, so that the system has to clear them page by page in each step: a fifth of the time of a small model's
    (4 layers of 256, 3,072 tokens: 94,000 page faults a step, and none with this).
    """
    if not sys.platform.startswith("linux") or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return
    # Arenas of threads give back whatever they can, whatever the threshold: all take from the one that does not.
    library.mallopt(_M_ARENA_MAX, 1)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Hand memory that this process has freed, and that its C library keeps to use it again, back to the system, for
    others; does nothing where that is not glibc."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
