import hashlib

import pytest
from etils import epath

from llama_jax.checkpoints.steps.manifest import (
    CheckpointDamagedError,
    FileRecord,
    LeafRecord,
    Manifest,
    first_damage,
    read_manifest,
    record_of,
    seal,
    unseal,
    write_step,
)


def written(directory: str, step: int = 40, process_count: int = 2) -> epath.Path:
    """A step folder with two array files, as two processes leave it."""
    folder = epath.Path(directory) / str(step)
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "a").write_bytes(b"aaa")
    (folder / "params" / "b").write_bytes(b"bb")
    leaves = {"params": {"w": LeafRecord((2, 3), "float32", (1, 2))}}
    manifest = Manifest(step, leaves, {"config": "1f"}, {"jax": "0"}, {})
    for process in reversed(range(process_count)):
        write_step(folder, manifest, {f"data/{process}": b"%d" % process}, process, process_count)
    return folder


def test_every_flipped_bit_of_a_sealed_file_is_found(tmp_path):
    path = epath.Path(tmp_path) / "sealed.json"
    whole = seal({"step": 40, "files": {"a": [1, None]}})
    path.write_bytes(whole)
    assert unseal(path) == {"step": 40, "files": {"a": [1, None]}}
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        with pytest.raises(CheckpointDamagedError):
            unseal(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"[" * 100_000, b'"sha256"', b"\xff", b"NaN"])
def test_a_manifest_that_is_anything_else_is_damage(tmp_path, content):
    path = epath.Path(tmp_path) / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"manifest.json: is not what was written"):
        unseal(path)


def test_each_file_is_vouched_for_by_one_process(tmp_path):
    folder = written(tmp_path)
    parts = [set(unseal(folder / f"files-{process}-of-2.json")["files"]) for process in range(2)]
    assert parts == [{"params/a", "data/0"}, {"params/b", "data/1"}]
    manifest = read_manifest(folder)
    assert manifest.files["params/b"] == FileRecord(2, hashlib.sha256(b"bb").hexdigest())
    assert manifest.leaves["params"]["w"] == LeafRecord((2, 3), "float32", (1, 2))
    assert manifest.files_of("params") == ["params/a", "params/b"] and manifest.files_of("data") == ["data/0", "data/1"]


@pytest.mark.parametrize("missing", ["manifest.json", "files-0-of-2.json", "files-1-of-2.json"])
def test_a_step_without_all_of_its_records_is_damaged(tmp_path, missing):
    folder = written(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(CheckpointDamagedError, match=f"{missing}: missing"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["manifest.json", "files-0-of-2.json"])
def test_the_records_of_another_step_are_damage(tmp_path, name):
    folder, other = written(tmp_path, 40), written(tmp_path, 30)
    (other / name).copy(folder / name, overwrite=True)
    with pytest.raises(CheckpointDamagedError, match=f"{name}: belongs to step 30"):
        read_manifest(folder)


def test_damage_is_told_apart(tmp_path):
    folder = written(tmp_path)
    manifest = read_manifest(folder)
    names = manifest.files_of("params")
    assert first_damage(manifest, names, lambda name: record_of(folder / name)) is None
    (folder / "params" / "b").write_bytes(b"bc")
    assert first_damage(manifest, names, lambda name: record_of(folder / name)) == "params/b: sha256 differs"
    (folder / "params" / "b").write_bytes(b"b")
    assert first_damage(manifest, names, lambda name: record_of(folder / name)) == "params/b: 1 bytes, 2 were written"
    (folder / "params" / "b").unlink()
    assert first_damage(manifest, names, lambda name: record_of(folder / name)) == "params/b: missing"
