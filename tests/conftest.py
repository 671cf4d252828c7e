"""Every test sees 8 virtual CPU devices; the whole suite shares one compilation cache, from run to run."""

import gc
import os
import signal
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / "llama_jax_test_cache"

# What JAX keeps of compiled programs is collected again and again for nothing: a twentieth of the time.
gc.set_threshold(200_000, 50, 50)

# A shell that starts something in the background has it ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the tests do, and a third of it is optimizing for a processor that then works for
# milliseconds. What the environment asks for comes later and so is what holds.
_flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS")]
os.environ["XLA_FLAGS"] = " ".join(filter(None, _flags))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

# JAX's CUDA plugin, with which tests compile for GPUs, says past every log level that there is no driver.
_standard_error = os.dup(2)
with Path(os.devnull).open("wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
try:
    import jax

    # `[B, T] + [T]` may be meant, or be an axis forgotten: where it is meant, the code says so.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.devices()
finally:
    os.dup2(_standard_error, 2)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from llama_jax.core.batches import TokenBatch  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the checks of the whole tree: the longest of them would be what the others wait for at the end."""
    items.sort(key=lambda item: item.path.name != "test_habits.py")


@pytest.fixture
def packed_batch():
    """Makes a random batch of two documents a row: `packed_batch(rows, length, vocab_size, seed)`."""

    def make(rows: int, length: int, vocab_size: int, seed: int = 0) -> TokenBatch:
        random = np.random.default_rng(seed)
        ids = random.integers(0, vocab_size, (rows, length + 1)).astype(np.int32)
        cut = length // 3
        segments = np.where(np.arange(length) < cut, 1, 2).astype(np.int32)
        positions = np.where(np.arange(length) < cut, np.arange(length), np.arange(length) - cut).astype(np.int32)
        weights = (random.random((rows, length)) < 0.9).astype(np.float32)
        return TokenBatch(
            tokens=jax.numpy.asarray(ids[:, :-1]),
            targets=jax.numpy.asarray(ids[:, 1:]),
            loss_weights=jax.numpy.asarray(weights),
            segment_ids=jax.numpy.asarray(np.tile(segments, (rows, 1))),
            positions=jax.numpy.asarray(np.tile(positions, (rows, 1))),
            normalizer=jax.numpy.float32(weights.sum()),
        )

    return make
