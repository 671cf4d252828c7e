"""One of two processes that save and restore together.

Usage: save_with_two_processes.py RANK PORT DIRECTORY"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

RANK, PORT, DIRECTORY = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{PORT}", 2, RANK)

from checkpoint_trees import sharding, targets, values  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from llama_jax.checkpoints.config import CheckpointConfig  # noqa: E402
from llama_jax.checkpoints.steps import restoring, saving  # noqa: E402


def arrays(step: int):
    def place(leaf):
        return jax.make_array_from_callback(leaf.shape, sharding(leaf.shape, 8), lambda index: leaf[index])

    return jax.tree.map(place, values(step))


def same(found, step: int) -> bool:
    """Whether the shards of this process are those of the step."""
    return all(
        np.asarray(shard.data).tobytes() == leaf[shard.index].tobytes()
        for item in found
        for array, leaf in zip(jax.tree.leaves(found[item]), jax.tree.leaves(values(step)[item]), strict=True)
        for shard in array.addressable_shards
    )


def files(step: int) -> dict[str, bytes]:
    own = {f"data/streams-{RANK}-of-2.json": json.dumps([step, RANK]).encode()}
    return own | ({"model/config.json": b"{}"} if RANK == 0 else {})


said: list[str] = []
checkpoints = saving.Checkpoints(DIRECTORY, CheckpointConfig(keep_last=2), say=said.append)
for step in (1, 2, 3):
    checkpoints.save(step, arrays(step), files(step), {})
checkpoints.save(3, arrays(4), files(4), {})
checkpoints.wait()
assert checkpoints.steps() == [2, 3] and checkpoints.failed_saves == 0, (checkpoints.steps(), said)

# One process cannot write its part: both count it, nothing of it is left, and the next save is as usual.
saving._SECONDS_FOR_OTHERS = 1.0
broken = {"data/a": b"", "data/a/b": b""} if RANK == 1 else files(4)
checkpoints.save(4, arrays(4), broken, {})
checkpoints.wait()
assert (checkpoints.failed_saves, checkpoints.failed_in_a_row, checkpoints.steps()) == (1, 1, [2, 3]), said
assert len(said) == 1 and ("another process" in said[0]) == (RANK == 0), said
multihost_utils.sync_global_devices("looked")
assert RANK == 1 or sorted(path.name for path in DIRECTORY.iterdir()) == ["2", "3"]
saving._SECONDS_FOR_OTHERS = 60.0
checkpoints.save(5, arrays(5), files(5), {})
checkpoints.wait()
assert (checkpoints.failed_saves, checkpoints.failed_in_a_row, checkpoints.steps()) == (1, 0, [3, 5]), said

found = restoring.restore(DIRECTORY, targets(8), files=("data",), say=said.append)
assert found is not None and found.step == 5 and same(found.items, 5)
assert found.files == {f"data/streams-{rank}-of-2.json": json.dumps([5, rank]).encode() for rank in (0, 1)}

# Damage that only one of them looks at: both fall back.
multihost_utils.sync_global_devices("read")
names = found.manifest.files_of("params")
if RANK == 0:
    path = DIRECTORY / "5" / next(name for name in names[1::2] if "ocdbt.process" in name)
    path.write_bytes(path.read_bytes() + b"x")
multihost_utils.sync_global_devices("damaged")
found = restoring.restore(DIRECTORY, targets(8, ("params",)), say=said.append)
assert found is not None and found.step == 3 and same(found.items, 3), said
assert ("another process" in said[-1]) == (RANK == 0) and said[-1].endswith("falling back to step 3"), said
print("done")
