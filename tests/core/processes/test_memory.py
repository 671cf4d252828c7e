"""What becomes of memory that is freed."""

import subprocess
import sys

import pytest

FREED = """
import numpy as np
from llama_jax.core.processes.memory import keep_freed_memory

def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

if {kept}:
    keep_freed_memory()
before = pages()
array = np.ones(64 * 2**20, np.uint8)
held = pages() - before
del array
print((pages() - before) / held)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept_if_asked_for() -> None:
    shares = [float(subprocess.check_output([sys.executable, "-c", FREED.format(kept=kept)])) for kept in (True, False)]
    assert shares[0] > 0.9
    assert shares[1] < 0.1
