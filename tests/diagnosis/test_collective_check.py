"""The check of collectives, against numbers worked out by hand, and with a collective that is wrong."""

import jax
import numpy as np
import pytest

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.diagnosis.collective_check import COLLECTIVES, Checked, Collective, check, expected_everywhere, groups

BY_NAME = {collective.name: collective for collective in COLLECTIVES}
# Two devices: the first has 1, 2, 3, 4, the second 10, 20, 30, 40.
VALUES = np.array([[1, 2, 3, 4], [10, 20, 30, 40]], np.float32)
BY_HAND = {
    "all-gather": [[1, 2, 3, 4, 10, 20, 30, 40], [1, 2, 3, 4, 10, 20, 30, 40]],
    "reduce-scatter": [[11, 22], [33, 44]],
    "all-reduce": [[11, 22, 33, 44], [11, 22, 33, 44]],
    "all-to-all": [[1, 2, 10, 20], [3, 4, 30, 40]],
    "permute": [[10, 20, 30, 40], [1, 2, 3, 4]],
}
MESHES = {"fsdp alone": MeshConfig(), "three axes": MeshConfig(data=2, fsdp=2, tensor=2)}


def checked(config: MeshConfig, collective: Collective) -> list[Checked]:
    mesh = make_mesh(config)
    return [check(mesh, axes, collective, 2**14) for axes in groups(mesh)]


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_expected_agrees_with_the_hand(name) -> None:
    assert expected_everywhere(VALUES, [0], BY_NAME[name]).tolist() == BY_HAND[name]


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_expected_lies_along_the_axis_that_is_named(name) -> None:
    # A second mesh axis, along which devices do not exchange anything: they hold the same, but for a factor.
    along_first = expected_everywhere(np.stack([VALUES, 100 * VALUES], axis=1), [0], BY_NAME[name])
    along_second = expected_everywhere(np.stack([VALUES, 100 * VALUES], axis=0), [1], BY_NAME[name])
    hand = np.array(BY_HAND[name])
    np.testing.assert_array_equal(along_first, np.stack([hand, 100 * hand], axis=1))
    np.testing.assert_array_equal(along_second, np.stack([hand, 100 * hand], axis=0))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", BY_HAND)
def test_collectives_are_right_along_every_axis(mesh, name) -> None:
    outcomes = checked(MESHES[mesh], BY_NAME[name])
    expected = {"fsdp alone": ["fsdp 8"], "three axes": ["data 2", "fsdp 2", "tensor 2", "data x fsdp x tensor 8"]}
    assert [outcome.axes for outcome in outcomes] == expected[mesh]
    assert [outcome.problem for outcome in outcomes] == [""] * len(outcomes)
    assert all(outcome.bytes_per_second > 0 for outcome in outcomes)


def test_one_device_has_nothing_to_exchange() -> None:
    assert groups(make_mesh(MeshConfig(), jax.devices()[:1])) == []


def test_a_number_that_is_wrong_is_found_with_its_device(monkeypatch) -> None:
    right = jax.lax.psum

    def wrong(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        spoilt = jax.numpy.where((jax.lax.axis_index(axes) == 3) & (jax.numpy.arange(x.size) == 5), 7, 0)
        return right(x, axes) + spoilt

    monkeypatch.setattr(jax.lax, "psum", wrong)
    (outcome,) = checked(MeshConfig(), BY_NAME["all-reduce"])
    values = np.random.default_rng(0).integers(0, 1000, (1, 8, 1, 1, 32))
    total = values.sum(1)[0, 0, 0, 5]
    assert outcome.problem == (f"cpu:3 has 1 of 32 numbers wrong, the first {total + 7} instead of {total}")


def test_devices_in_another_order_are_found(monkeypatch) -> None:
    right = jax.lax.ppermute
    monkeypatch.setattr(jax.lax, "ppermute", lambda x, axes, pairs: right(x, axes, [(b, a) for a, b in pairs]))
    outcomes = checked(MeshConfig(data=2, fsdp=4), BY_NAME["permute"])
    # Among two it is the same either way around.
    assert [bool(outcome.problem) for outcome in outcomes] == [False, True, True]
