import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import arrays, files, mesh, same, save_steps, sharding, targets, values
from jax.sharding import NamedSharding, PartitionSpec

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, seal
from llama_jax.checkpoints.steps.restoring import _pass_on, find_verified, restore
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core.errors import SaveFailedError, UserError


def flip(path: Path, bit: int = 5) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)


def biggest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_leaves_are_bit_identical_on_8_then_4_then_1_devices(tmp_path):
    for number, devices in enumerate((8, 4, 1)):
        save_steps(tmp_path, number, devices=devices)
        for other in (1, 4, 8):
            found = restore(tmp_path, targets(other), say=print)
            assert found is not None and found.step == number and same(found.items, number)
            kernel = found.items["params"]["layers"]["mlp"]["kernel"]
            assert kernel.sharding == sharding(kernel.shape, other)
            assert jax.tree.structure(found.items) == jax.tree.structure(values(0))


def test_plain_files_and_hashes_come_back(tmp_path):
    save_steps(tmp_path, 7)
    found = restore(tmp_path, targets(items=("params",)), files=("data", "model"), say=print)
    assert found is not None
    assert found.files == files(7) and found.manifest.hashes == {"tokenizer": "abc"}
    assert found.manifest.versions["jax"] == jax.__version__


def test_an_item_without_leaves_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), say=print)
    checkpoints.save(1, {"params": arrays(1)["params"], "optimizer": ()}, {}, {})
    checkpoints.wait()
    found = restore(tmp_path, {"optimizer": (), **targets(items=("params",))}, say=print)
    assert found is not None and found.items["optimizer"] == () and same({"params": found.items["params"]}, 1)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_leaves_may_live_on_different_devices(tmp_path):
    save_steps(tmp_path, 1, devices=8)
    wanted = targets(4) | {"params": targets(8)["params"] | {"embed": targets(1)["params"]["embed"]}}
    found = restore(tmp_path, wanted, say=pytest.fail)
    assert found is not None and same(found.items, 1)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), say=pytest.fail)
    checkpoints.save(2, found.items, {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 7, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), say=print)
    state = arrays(3, jax.device_count())
    checkpoints.save(3, state, {}, {})
    for _ in range(20):
        state = overwrite(state)
    checkpoints.wait()
    found = restore(tmp_path, targets(), say=print)
    assert found is not None and same(found.items, 3)


def test_a_step_that_is_acknowledged_is_not_saved_again(tmp_path):
    checkpoints = save_steps(tmp_path, 4)
    before = (tmp_path / "4" / "manifest.json").stat().st_mtime_ns
    checkpoints.save(4, arrays(5), {}, {})
    checkpoints.wait()
    save_steps(tmp_path, 4)
    assert (tmp_path / "4" / "manifest.json").stat().st_mtime_ns == before and checkpoints.failed_saves == 0


def test_a_step_that_no_longer_verifies_is_saved_again(tmp_path):
    save_steps(tmp_path, 4, 5)
    flip(biggest(tmp_path / "4" / "params"))
    (tmp_path / "5" / "manifest.json").unlink()
    save_steps(tmp_path, 4, 5)
    for step in (4, 5):
        found = restore(tmp_path, targets(), step=step, say=print)
        assert found is not None and same(found.items, step)


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path):
    save_steps(tmp_path, 40)
    wanted = targets(items=("params",))
    wanted["params"]["layers"]["mlp"]["kernel"] = jax.ShapeDtypeStruct(
        (2, 8, 32), jnp.float32, sharding=sharding((2, 8, 32), 1)
    )
    with pytest.raises(UserError) as caught:
        restore(tmp_path, wanted, say=print)
    assert str(caught.value) == (
        "checkpoint step 40 has params/layers/mlp/kernel float32[2,8,24], the model expects float32[2,8,32]"
    )
    found = find_verified(tmp_path, ("params",), say=print)
    with pytest.raises(UserError, match=re.escape("float32[2,8,24], the model expects float32[2,8,32]")):
        assert found is not None and found.restore(wanted)
    flip(biggest(tmp_path / "40" / "params"))
    with pytest.raises(UserError):  # leaves are compared before the files are read
        restore(tmp_path, wanted, say=pytest.fail)


def test_missing_and_extra_leaves_and_dtypes_are_named_and_the_rest_counted(tmp_path):
    save_steps(tmp_path, 40)
    place = NamedSharding(mesh(1), PartitionSpec())
    wanted = {
        "params": {name: jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=place) for name in ("embed", "new")}
    }
    with pytest.raises(UserError) as caught:
        restore(tmp_path, wanted, say=print)
    assert str(caught.value) == (
        "checkpoint step 40 has params/embed float32[16,8], the model expects bfloat16[16,8]; "
        "has params/layers/mlp/kernel float32[2,8,24], which the model does not have; "
        "has params/layers/norm bfloat16[2,8], which the model does not have; and 1 more"
    )
    del wanted["params"]["embed"]
    wanted["params"] |= targets(items=("params",))["params"]
    with pytest.raises(UserError, match=re.escape("lacks params/new, the model expects bfloat16[16,8]")):
        restore(tmp_path, wanted, say=print)


def test_an_item_or_a_step_that_is_not_there_is_named_with_what_is(tmp_path):
    save_steps(tmp_path, 10, 20)
    with pytest.raises(UserError, match=r"step 20 in .* has no adapter; it has data, model, optimizer, params"):
        find_verified(tmp_path, ("adapter",), say=print)
    with pytest.raises(UserError, match=r"no checkpoint step 15 in .*; there are: 10, 20"):
        restore(tmp_path, targets(), step=15, say=print)


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert restore(tmp_path / "never_made", targets(), say=print) is None
    (tmp_path / "5.pending").touch()
    (tmp_path / "5").mkdir()
    assert restore(tmp_path, targets(), say=print) is None


def test_a_flipped_bit_falls_back_to_the_older_step_and_says_so(tmp_path):
    save_steps(tmp_path, 30, 40)
    bad = biggest(tmp_path / "40" / "params")
    flip(bad)
    said: list[str] = []
    found = restore(tmp_path, targets(), say=said.append)
    assert found is not None and found.step == 30 and same(found.items, 30)
    name = bad.relative_to(tmp_path / "40")
    assert said == [f"checkpoint step 40 does not verify: {name}: sha256 differs; falling back to step 30"]
    with pytest.raises(CheckpointDamagedError, match="sha256 differs"):
        restore(tmp_path, targets(), step=40, say=print)


def test_a_changed_plain_file_falls_back_too(tmp_path):
    save_steps(tmp_path, 30, 40)
    (tmp_path / "40" / "data" / "streams-0-of-1.json").write_bytes(b'{"position": 41}')
    said: list[str] = []
    found = restore(tmp_path, {}, files=("data",), say=said.append)
    assert found is not None and found.step == 30 and found.files == {"data/streams-0-of-1.json": b'{"position": 30}'}
    assert "data/streams-0-of-1.json: sha256 differs" in said[0]


def test_damage_in_an_item_not_asked_for_does_not_matter(tmp_path):
    save_steps(tmp_path, 30, 40)
    shutil.rmtree(tmp_path / "40" / "optimizer")
    said: list[str] = []
    found = restore(tmp_path, targets(items=("params",)), files=("model",), say=said.append)
    assert found is not None and found.step == 40 and same(found.items, 40) and said == []


def test_an_array_whose_fingerprint_differs_is_not_given_out(tmp_path):
    save_steps(tmp_path, 30, 40)
    path = tmp_path / "40" / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["sha256"]
    content["leaves"]["params"]["embed"]["fingerprint"][1] ^= 1
    path.write_bytes(seal(content))
    said: list[str] = []
    found = restore(tmp_path, targets(), say=said.append)
    assert found is not None and found.step == 30 and "params/embed: fingerprint differs" in said[0]


@pytest.mark.parametrize("lost", ["manifest.json", "files-0-of-1.json", "model/config.json"])
def test_all_steps_damaged_is_an_error_and_never_a_fresh_start(tmp_path, lost):
    save_steps(tmp_path, 30, 40)
    for step in ("30", "40"):
        (tmp_path / step / lost).unlink()
    with pytest.raises(CheckpointDamagedError, match=f"step 40: {lost}: missing; step 30: {lost}: missing"):
        restore(tmp_path, targets(items=("params",)), files=("model",), say=print)


def test_evaluation_reads_the_model_of_the_newest_step_whose_params_verify(tmp_path):
    save_steps(tmp_path, 30, 40)
    flip(biggest(tmp_path / "40" / "params"))
    found = find_verified(tmp_path, ("model", "params"), say=print)
    assert found is not None and found.step == 30
    assert found.files == {"model/config.json": b'{"layers": 2}'}
    assert same(found.restore(targets(items=("params",))), 30)
    with pytest.raises(ValueError, match="only model, params of step 30"):
        found.restore(targets())


def test_bad_names_are_refused_before_anything_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(), say=print)
    for name in ("config.json", "params/x.json", "model/../x", "/model/x"):
        with pytest.raises(ValueError, match="checkpoint file"):
            checkpoints.save(1, arrays(1), {name: b""}, {})
    with pytest.raises(ValueError, match="not a tree of arrays"):
        checkpoints.save(1, {"params": {"x": np.zeros(2)}}, {}, {})
    assert not (tmp_path / "run").exists()


def test_failures_in_a_row_are_counted_and_end_the_run(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    said: list[str] = []
    checkpoints = Checkpoints(blocked, CheckpointConfig(max_failed_saves=2), say=said.append)
    checkpoints.save(1, arrays(1), {}, {})
    assert (checkpoints.failed_saves, checkpoints.failed_in_a_row) == (1, 1)
    checkpoints.save(2, arrays(2), {}, {})
    for _ in range(2):
        with pytest.raises(SaveFailedError, match=r"2 saves in a row failed, the last because: .*File exists"):
            checkpoints.wait()
    assert len(said) == 2 and said[1].startswith("checkpoint step 2 was not saved (2 in a row): ")


def test_a_file_that_cannot_be_written_fails_its_save_only(tmp_path):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(max_failed_saves=2), say=said.append)
    checkpoints.save(1, arrays(1), files(1), {})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        checkpoints.save(2, arrays(2), files(2), {})
        checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (checkpoints.failed_saves, checkpoints.failed_in_a_row) == (1, 1) and len(said) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
    checkpoints.save(3, arrays(3), files(3), {})
    checkpoints.wait()
    assert (checkpoints.failed_saves, checkpoints.failed_in_a_row, checkpoints.steps()) == (1, 0, [1, 3])
    found = restore(tmp_path, targets(), say=print)
    assert found is not None and same(found.items, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_survived(small_disk, caplog):
    said: list[str] = []
    checkpoints = Checkpoints(small_disk / "run", CheckpointConfig(keep_last=9), say=said.append)
    checkpoints.save(1, arrays(1), files(1), {})
    checkpoints.wait()
    filler = small_disk / "filler"
    room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    filler.write_bytes(bytes(room - 16384))
    for step in (2, 3):
        checkpoints.save(step, arrays(step), files(step), {})
        checkpoints.wait()
    assert said == [f"checkpoint step {n + 1} was not saved ({n} in a row): no space left on device" for n in (1, 2)]
    assert [path.name for path in (small_disk / "run").iterdir()] == ["1"] and checkpoints.steps() == [1]
    assert caplog.records == [], "one line each is enough"
    filler.unlink()
    checkpoints.save(4, arrays(4), files(4), {})
    checkpoints.wait()
    assert checkpoints.failed_in_a_row == 0 and checkpoints.steps() == [1, 4]
    for step in (1, 4):
        found = restore(small_disk / "run", targets(), step=step, say=print)
        assert found is not None and same(found.items, step)


def test_of_a_failed_save_what_waited_for_it_does_not_complain():
    """Python says on standard error what a library could not raise (Pytest has a hook of its own meanwhile)."""
    passed_on: list[Any] = []
    for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), None):
        _pass_on(SimpleNamespace(exc_value=error), passed_on.append)
    assert [str(what.exc_value) for what in passed_on] == ["other", "None"]


def test_what_a_step_says_of_itself_can_be_read(tmp_path):
    save_steps(tmp_path, 12)
    found = find_verified(tmp_path, ("params",), say=print)
    assert found is not None
    embed = dataclasses.asdict(found.manifest.leaves["params"]["embed"])
    assert embed["shape"] == (16, 8) and embed["dtype"] == "float32" and len(embed["fingerprint"]) == 2
    assert found.manifest.items() == ["data", "model", "optimizer", "params"]
