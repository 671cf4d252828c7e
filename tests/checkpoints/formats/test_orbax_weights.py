"""Models written and read block by block are the same checkpoints as those that a run saves."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from small_weights import BFLOAT16, SmallWeights, assert_same, of_kind

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.formats import orbax as orbax_weights
from llama_jax.checkpoints.formats.orbax import open_orbax, write_orbax
from llama_jax.checkpoints.formats.weights import WEIGHTS, WeightName, Weights, padded, weight_names
from llama_jax.checkpoints.steps.folders import clean_up
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, record_of, seal
from llama_jax.checkpoints.steps.restoring import find_verified
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core import tree
from llama_jax.core.errors import UserError

FLOAT16, FLOAT32, FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
FILES = {"tokenizer.json": b'{"model": {}}', "chat_template.jinja": b"{{ messages }}"}


def whole(weights: Weights, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Our tree in memory, by path: layers stacked, vocabulary padded."""
    leaves = {}
    for name in weight_names(weights.config):
        layers = range(weights.config.num_layers) if name.per_layer else (None,)
        tensors = [padded(weights.read(name, layer).astype(dtype), name, weights.config) for layer in layers]
        leaves[name.ours] = np.stack(tensors) if name.per_layer else tensors[0]
    return leaves


def restored(directory: epath.Path) -> dict[str, np.ndarray]:
    """The tree as the commands restore it, which compares the fingerprints."""
    found = find_verified(directory / "checkpoints", ("params", "model"), say=pytest.fail)
    assert found is not None and found.step == 0
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for path, leaf in found.manifest.leaves["params"].items()
    }
    params = found.restore({"params": tree.unflatten(targets)})["params"]
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        (leaf.dtype, leaf.shape, leaf.tobytes()) == (other.dtype, other.shape, other.tobytes())
        for leaf, other in ((found[path], expected[path]) for path in found)
    )


def save_run(directory: epath.Path, weights: Weights) -> None:
    params = {path: jnp.asarray(leaf) for path, leaf in whole(weights, FLOAT32).items()}
    files = {"model/config.json": json.dumps(weights.config.to_json()).encode(), "model/tokenizer.json": b"{}"}
    checkpoints = Checkpoints(directory / "checkpoints", CheckpointConfig(), say=pytest.fail)
    checkpoints.save(7, {"params": tree.unflatten(params)}, files, {})
    checkpoints.wait()


@pytest.fixture
def target(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path) / "model"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 of 16 rows, blocks of 10, so that the last of either is a smaller one."""
    monkeypatch.setattr(orbax_weights, "_CHUNK_BYTES", 5 * 24 * 4)
    monkeypatch.setattr(orbax_weights, "_BLOCK_CHUNKS", 2)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("source", "asked", "stored", "tied"),
    [
        (FLOAT32, None, FLOAT32, False),
        (BFLOAT16, None, BFLOAT16, False),
        (FLOAT32, BFLOAT16, BFLOAT16, True),
        (BFLOAT16, FLOAT16, FLOAT16, True),
        (FLOAT64, None, FLOAT32, True),
    ],
)
def test_what_is_written_restores_like_a_checkpoint_bit_for_bit(target, source, asked, stored, tied) -> None:
    weights = of_kind(source, tie_embeddings=tied)
    write_orbax(target, weights, dtype=asked)
    assert same(restored(target), whole(weights, stored))
    assert [path.name for path in (target / "checkpoints").iterdir()] == ["0"]


@pytest.mark.usefixtures("small_blocks")
def test_every_tensor_comes_back_in_its_own_type_and_every_file(target) -> None:
    weights = SmallWeights(kind=BFLOAT16, norm_kind=FLOAT32, files=FILES)
    write_orbax(target, weights, dtype=None)
    found = open_orbax(target, say=pytest.fail)
    assert_same(found, weights)
    assert found.files == FILES and found.source == f"{target} step 0"


@dataclass(frozen=True)
class Turned(SmallWeights):
    """The same, matrices as views of their transpose, as other formats store them."""

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        return np.ascontiguousarray(super().read(name, layer).T).T


@pytest.mark.usefixtures("small_blocks")
def test_transposed_views_are_written_in_our_orientation(target) -> None:
    write_orbax(target, Turned(), dtype=None)
    assert_same(open_orbax(target, say=pytest.fail), SmallWeights())


def test_a_checkpoint_of_a_run_is_read_and_written_again(target) -> None:
    weights = SmallWeights()
    save_run(target, weights)
    found = open_orbax(target, step=7, say=pytest.fail)
    assert_same(found, weights)
    assert found.files == {"tokenizer.json": b"{}"}
    copy = target.parent / "copy"
    write_orbax(copy, found, dtype=None)
    assert same(restored(copy), whole(weights, FLOAT32))


def test_a_damaged_file_is_refused(target) -> None:
    write_orbax(target, SmallWeights(), dtype=None)
    files = [path for path in Path(target / "checkpoints" / "0" / "params").rglob("*") if path.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match="sha256 differs"):
        open_orbax(target, say=lambda text: None)


def test_no_checkpoint_and_no_such_step_are_said(target) -> None:
    with pytest.raises(UserError, match="model: holds no checkpoint"):
        open_orbax(target, say=pytest.fail)
    write_orbax(target, SmallWeights(), dtype=None)
    with pytest.raises(UserError, match=r"no checkpoint step 4 in .*; there are: 0"):
        open_orbax(target, step=4, say=pytest.fail)


def reseal(path: epath.Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a sealed file as someone does who means to deceive."""
    content = json.loads(path.read_bytes())
    del content["sha256"]
    change(content)
    path.write_bytes(seal(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"has params/embedding/table float32\[128,16\], the model expects float32\[128,32\]"),
        ({"num_layers": 10**9}, r"the model expects float32\[1000000000,16,16\]"),
        ({"width": "wide"}, r"model step 0: model/config.json: has a value of a wrong type"),
        ({"depth": 3}, "unknown field 'depth'"),
    ],
)
def test_a_configuration_that_the_arrays_do_not_fit_is_refused(target, changes, message) -> None:
    write_orbax(target, SmallWeights(), dtype=None)
    folder = target / "checkpoints" / "0"
    file = folder / "model" / "config.json"
    file.write_bytes(json.dumps(json.loads(file.read_bytes()) | changes).encode())
    record = {"model/config.json": vars(record_of(epath.Path(file)))}
    reseal(folder / "files-0-of-1.json", lambda content: content["files"].update(record))
    with pytest.raises(UserError, match=message) as caught:
        open_orbax(target, say=pytest.fail)
    assert "\n" not in str(caught.value)


def test_an_array_that_is_not_the_one_of_the_manifest_is_refused(target) -> None:
    write_orbax(target, SmallWeights(), dtype=None)

    def change(content: dict[str, Any]) -> None:
        content["leaves"]["params"]["embedding/table"]["dtype"] = "bfloat16"

    reseal(target / "checkpoints" / "0" / "manifest.json", change)
    found = open_orbax(target, say=pytest.fail)
    with pytest.raises(CheckpointDamagedError, match=r"params/embedding/table: is float32\[128,16\], not bfloat16"):
        found.read(WEIGHTS[0], None)


@dataclass(frozen=True)
class Spoiled(SmallWeights):
    """One value of one tensor is another."""

    value: float = np.inf

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        tensor = super().read(name, layer)
        if name.ours == "layers/mlp/up_proj/kernel" and layer == 1:
            tensor[5, 7] = self.value
        return tensor


def test_a_value_out_of_range_ends_the_writing_and_leaves_nothing_that_opens(target) -> None:
    with pytest.raises(UserError, match="layers/mlp/up_proj/kernel of layer 1: has values too large for float16"):
        write_orbax(target, Spoiled(value=1e5), dtype=FLOAT16)
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_orbax(target, say=pytest.fail)
    assert clean_up(target / "checkpoints") == [0] and not list((target / "checkpoints").iterdir())


def test_a_value_that_is_not_finite_is_refused_with_its_place(target) -> None:
    save_run(target, Spoiled())
    found = open_orbax(target, say=pytest.fail)
    up_proj = next(name for name in WEIGHTS if "up_proj" in name.ours)
    found.read(up_proj, 0)
    with pytest.raises(UserError, match=r"model step 7: layers/mlp/up_proj/kernel of layer 1 has 1 non-finite values"):
        found.read(up_proj, 1)


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from etils import epath
from llama_jax.checkpoints.formats.orbax import open_orbax, write_orbax
from llama_jax.checkpoints.formats.weights import tensors_of
from llama_jax.model.config import LlamaConfig

class Ramp:
    source, files = "ramp", {}
    config = LlamaConfig(vocab_size=128, width=512, mlp_width=4096, num_layers=28, num_heads=4, num_kv_heads=4)

    def dtype(self, name):
        return np.dtype(np.float32)

    def read(self, name, layer):
        return np.full(name.shape(self.config), layer or 0, np.float32)

def peak():
    # Not ru_maxrss, which begins at what the parent had.
    return int(re.search("VmHWM:\\\\s*(\\\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
target = epath.Path(sys.argv[1])
write_orbax(target, Ramp(), dtype=None)
weights = open_orbax(target, say=print)
assert all((weights.read(name, layer) == (layer or 0)).all() for name, layer in tensors_of(weights.config))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_no_array_is_in_memory_as_a_whole(target) -> None:
    # Three arrays of 28 layers of 8 MiB, 224 MiB each; 200 to 320 MiB are needed with a single layer, too.
    done = subprocess.run([sys.executable, "-c", MEASURE, str(target)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400, done.stdout
