"""Checkpoints in an object store: without rename, append and folders, and with listings that are late."""

import object_store
import pytest
from checkpoint_trees import same, save_steps, targets
from etils import epath
from sweeps import some

from llama_jax.checkpoints.steps.folders import acknowledged_steps, delete_after, finished_steps
from llama_jax.checkpoints.steps.manifest import verifies
from llama_jax.checkpoints.steps.restoring import restore


@pytest.fixture(scope="module")
def bucket():
    """With steps 10 and 20, saved on four devices."""
    with object_store.object_store() as root:
        save_steps(f"{root}/run/checkpoints", 10, 20, devices=4)
        yield epath.Path(f"{root}/run/checkpoints")


@pytest.fixture
def steps(bucket):
    """The same, whatever a test does to it."""
    before = dict(object_store.OBJECTS)
    yield bucket
    object_store.OBJECTS.clear()
    object_store.OBJECTS.update(before)


def objects_of(step: int) -> list[str]:
    return [name for name in sorted(object_store.OBJECTS) if name.startswith(f"bucket/run/checkpoints/{step}/")]


def restored(steps: epath.Path) -> tuple[int, list[str]]:
    """The step that is restored, as it was saved, and what is said."""
    said: list[str] = []
    found = restore(steps, targets(), files=("model", "data"), say=said.append)
    assert found is not None and same(found.items, found.step)
    assert found.files["data/streams-0-of-1.json"] == b'{"position": %d}' % found.step
    return found.step, said


def test_what_is_saved_is_restored_and_verifies(steps) -> None:
    assert finished_steps(steps) == acknowledged_steps(steps) == [10, 20]
    assert verifies(steps / "20") and restored(steps) == (20, [])


@pytest.mark.parametrize("number", some(range(27), [0, 4, 13]))
def test_an_object_that_no_listing_tells_of_yet_is_read_all_the_same(steps, number) -> None:
    unlisted = objects_of(20)[number]
    with object_store.listings(lambda name: name != unlisted):
        assert restored(steps) == (20, []) and verifies(steps / "20")


def test_a_step_that_no_listing_tells_of_yet_leaves_the_one_before(steps) -> None:
    with object_store.listings(lambda name: "/20/" not in name):
        assert restored(steps) == (10, [])


def test_a_step_that_listings_still_tell_of_is_not_taken_for_one(steps) -> None:
    before = frozenset(object_store.OBJECTS)
    delete_after(steps, 10)
    with object_store.listings(before):
        assert not objects_of(20) and finished_steps(steps) == [10, 20] and acknowledged_steps(steps) == [10]
        step, said = restored(steps)
        assert step == 10
        assert said == ["checkpoint step 20 does not verify: manifest.json: missing; falling back to step 10"]


@pytest.mark.parametrize("number", some(range(27), [2, 9]))
def test_an_object_that_has_changed_or_is_gone_is_found(steps, number) -> None:
    name = objects_of(20)[number]
    content = object_store.OBJECTS[name]
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]) if content else b"x", content[:-1] or b"y", None):
        if damaged is None:
            del object_store.OBJECTS[name]
        else:
            object_store.put(name, damaged)
        assert not verifies(steps / "20") and restored(steps)[0] == 10
