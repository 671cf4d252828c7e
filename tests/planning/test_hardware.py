import math

import pytest

from llama_jax.core.errors import UserError
from llama_jax.planning.hardware import SLICES, Topology, parse_topology


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("v5litepod-256", "v5e:16x16"),
        ("v5e-256", "v5e:16x16"),
        ("v5e-1", "v5e:1x1"),
        ("v6e-256", "v6e:16x16"),
        ("v6e-32", "v6e:4x8"),
        ("v4-8", "v4:2x2x1"),
        ("v4-512", "v4:4x8x8"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-1024", "v5p:8x8x8"),
        ("v5p-12288", "v5p:16x16x24"),
    ],
)
def test_a_name_of_the_cloud_stands_for_its_torus(name, same):
    assert parse_topology(name) == parse_topology(same)
    assert parse_topology(name).name == same


def test_names_of_v4_and_v5p_count_cores_and_devices_are_chips():
    assert [parse_topology(name).num_devices for name in ("v4-512", "v5p-512", "v5e-64", "v6e-64")] == [
        256,
        256,
        64,
        64,
    ]


def test_every_slice_is_found_by_either_of_its_names():
    slices = [Topology(generation, shape) for generation, shapes in SLICES.items() for shape in shapes]
    assert [parse_topology(each.name) for each in slices] == slices
    assert [parse_topology(each.cloud_name or "") for each in slices] == slices


def test_slices_come_in_rising_size():
    for shapes in SLICES.values():
        sizes = [math.prod(shape) for shape in shapes]
        assert sizes == sorted(set(sizes))


def test_slices_and_gpus_are_counted():
    assert parse_topology("v5e:16x16", num_slices=2).num_devices == 512
    gpus = parse_topology("h100:32x8")
    assert (gpus.num_devices, gpus.platform, gpus.cloud_name) == (256, "gpu", None)


def test_a_torus_of_cubes_that_is_not_listed_can_be_planned_for():
    assert parse_topology("v5p:4x8x12").num_devices == 384


def test_larger_ones_are_of_the_same_kind():
    assert [each.name for each in parse_topology("v5e:8x8").larger()] == ["v5e:8x16", "v5e:16x16"]
    assert [each.num_slices for each in parse_topology("v6e:8x16", 2).larger()] == [2]
    assert [each.name for each in parse_topology("h100:512x8").larger()] == [
        "h100:1024x8",
        "h100:2048x8",
        "h100:4096x8",
    ]
    assert next(parse_topology("v5p:4x8x12").larger()).name == "v5p:8x8x8"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:3x5", "'v5e:3x5' is not a slice of v5e; there are 1x1, 2x2, .*, 16x16; the nearest is v5e:4x4$"),
        ("v5e:32x32", "the nearest is v5e:16x16$"),
        ("v5e:16x8", "the nearest is v5e:8x16$"),
        ("v5e:2x2x2", "the nearest is v5e:2x4$"),
        ("v4:8x4x8", "4x8x8, .* and more in rising multiples of 4; the nearest is v4:4x8x8$"),
        ("v4:32x32x32", "the nearest is v4:16x16x16$"),
        ("v5litepod-200", "counted in chips, there are 1, 4, .*, 256; the nearest is v5litepod-256 .v5e:16x16.$"),
        ("v4-500", "counted in cores, two a chip, there are 8, .*; the nearest is v4-512 .v4:4x8x8.$"),
        ("v99:2x2", "is not hardware that can be planned for; write v5e:16x16, .* or h100:32x8$"),
        ("v6:2x2", "or h100:32x8; did you mean 'v6e'.$"),
        ("v5e", "is not hardware that can be planned for; write v5e:16x16, .* or h100:32x8$"),
        ("a100:2x8", "is not hardware that can be planned for; .*did you mean 'h100'.$"),
        ("h100:8", r"is not hosts x GPUs per host \(at most 8\), as in h100:32x8$"),
        ("h100:4x16", r"is not hosts x GPUs"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_those_that_do(name, message):
    with pytest.raises(UserError, match=rf"^topology: '{name}'[^\n]*") as raised:
        parse_topology(name)
    assert raised.match(message)


def test_slices_are_for_tpus():
    with pytest.raises(UserError, match=r"^num_slices: 2 are for TPU; for 'h100:2x8' ask for more hosts$"):
        parse_topology("h100:2x8", num_slices=2)
    with pytest.raises(UserError, match=r"^num_slices: 0 must be at least 1$"):
        parse_topology("v5e:2x4", num_slices=0)
