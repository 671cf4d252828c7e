"""Damage to random files of the newest of two steps must never give wrong values without a word."""

import random
import shutil
from pathlib import Path

import pytest
from checkpoint_trees import same, save_steps, targets

from llama_jax.checkpoints.steps.restoring import restore

KINDS = ("flip", "truncate", "delete", "swap", "stale")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two_steps")
    save_steps(directory, 10, 20)
    return directory


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def counterpart(name: str, newer: dict[str, bytes], older: dict[str, bytes]) -> str:
    """The file of the older step that stands where `name` stands in the newer one; orbax gives some random names."""
    folder = name.rpartition("/")[0]
    siblings = [sorted(other for other in files if other.rpartition("/")[0] == folder) for files in (newer, older)]
    return siblings[1][siblings[0].index(name) % len(siblings[1])]


def damage(directory: Path, kind: str, draw: random.Random) -> None:
    folder = directory / "20"
    files = contents(folder)
    name, other = draw.sample(sorted(files), 2)
    data = bytearray(files[name])
    if kind == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        data = data[: draw.randrange(len(data))]
    elif kind == "swap":
        data = files[other]
        (folder / other).write_bytes(files[name])
    elif kind == "stale":
        older = contents(directory / "10")
        data = older[counterpart(name, files, older)]
    (folder / name).write_bytes(data)
    if kind == "delete":
        (folder / name).unlink()


def check(two_steps: Path, tmp_path: Path, kind: str, seed: int) -> None:
    draw = random.Random(f"{kind} {seed}")
    directory = tmp_path / "run"
    shutil.copytree(two_steps, directory)
    damage(directory, kind, draw)
    items = draw.choice([("params",), ("params", "optimizer")])
    before, after = contents(two_steps / "20"), contents(directory / "20")
    # Loose files of the folder, the manifest among them, belong to every item.
    asked = {name for name in before if "/" not in name or name.split("/")[0] in (*items, "model")}
    expected = 20 if all(after.get(name) == before[name] for name in asked) else 10
    said: list[str] = []
    found = restore(directory, targets(items=items), files=("model",), say=said.append)
    assert found is not None and found.step == expected and same(found.items, expected)
    assert len(said) == (expected == 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_damage_is_found_or_does_not_matter(two_steps, tmp_path, kind, seed):
    check(two_steps, tmp_path, kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8, 68))
def test_damage_is_found_or_does_not_matter_in_a_long_sweep(two_steps, tmp_path, kind, seed):
    check(two_steps, tmp_path, kind, seed)
