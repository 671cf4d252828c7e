"""Seconds by resource, each computed by hand from the figures of a chip."""

import dataclasses

import numpy as np
import pytest
from jax.sharding import Mesh

from llama_jax.core.chips import CHIPS, Chip
from llama_jax.planning.compiled.collectives import Collective
from llama_jax.planning.roofline import LABEL, Roofline, roofline, torus_dimensions

V5E, V5P, H100 = CHIPS["TPU v5 lite"], CHIPS["TPU v5"], CHIPS["NVIDIA H100 80GB HBM3"]
LINK = 45e9
MEGABYTE = 1_000_000


class Device:
    """As much of a device as says where in its torus it is."""

    def __init__(self, coords: tuple[int, ...]) -> None:
        self.coords, self.slice_index, self.process_index = coords, 0, 0


def mesh_of(torus: tuple[int, ...], shape: tuple[int, ...]) -> Mesh:
    """The chips of a torus, row by row, in a mesh with the axes `a`, `b`, …"""
    devices = np.array([Device(coords) for coords in np.ndindex(*torus)], object)
    return Mesh(devices.reshape(shape), tuple("abc"[: len(shape)]))


PLANE = mesh_of((16, 16), (16, 16))


def sent(kind: str, axes: tuple[str, ...], group_size: int, **changes) -> Collective:
    collective = Collective(kind, ("bf16",), "", MEGABYTE, group_size, 1, "", "forward", "", axes=axes)
    return dataclasses.replace(collective, **changes)


def of(chip: Chip, mesh: Mesh, *collectives: Collective) -> Roofline:
    return roofline(chip, mesh, 0, 0, collectives)


def test_compute_and_memory_take_what_the_chip_needs_for_them():
    bound = roofline(V5E, PLANE, 2 * 197e12, 3 * 819 * 10**9, [])
    assert bound.seconds == {"compute": 2.0, "memory": 3.0}
    assert (bound.bound, bound.overlapped_seconds, bound.serial_seconds) == ("memory", 3.0, 5.0)


@pytest.mark.parametrize(
    ("torus", "shape", "axes", "dimensions"),
    [
        ((16, 16), (16, 16), ("a",), [(16, 2)]),
        ((16, 16), (256,), ("a",), [(16, 2), (16, 2)]),
        ((16, 16), (32, 8), ("b",), [(8, 1)]),  # half of a ring is a line
        ((4, 8), (4, 8), ("a", "b"), [(4, 1), (8, 1)]),  # too small a slice for wraparound links
    ],
)
def test_a_group_has_the_links_of_the_torus_dimensions_that_it_spans(torus, shape, axes, dimensions):
    assert torus_dimensions(mesh_of(torus, shape), axes, V5E) == dimensions


def test_slices_of_whole_cubes_are_rings_in_three_dimensions():
    assert torus_dimensions(mesh_of((4, 4, 8), (128,)), ("a",), V5P) == [(4, 2), (4, 2), (8, 2)]
    assert torus_dimensions(mesh_of((2, 4, 4), (32,)), ("a",), V5P) == [(2, 1), (4, 1), (4, 1)]


def test_a_reduction_over_two_rings_takes_as_long_as_a_scatter_over_one():
    """fsdp over 16 x 16: an all-reduce sends twice the bytes over twice the links (of D bytes, D / W each)."""
    both = of(V5E, mesh_of((16, 16), (256,)), sent("all-reduce", ("a",), 256))
    one = of(V5E, PLANE, sent("reduce-scatter", ("a",), 16))
    assert both.seconds["interconnect"] == pytest.approx(2 * 255 / 256 * MEGABYTE / (4 * LINK), rel=1e-6)
    assert one.seconds["interconnect"] == pytest.approx(15 / 16 * MEGABYTE / (2 * LINK), rel=1e-6)


def test_an_exchange_among_all_is_bound_by_the_middle_of_the_torus():
    """Of 16 devices in a ring, 8 send half of a megabyte each over the middle: 4 MB over two links each way."""
    bound = of(V5E, PLANE, sent("all-to-all", ("a",), 16))
    assert bound.seconds["interconnect"] == pytest.approx(4 * MEGABYTE / (2 * LINK))


def test_passing_on_takes_one_link():
    assert of(V5E, PLANE, sent("collective-permute", ("a",), 16)).seconds["interconnect"] == MEGABYTE / LINK


def test_between_slices_is_the_network_and_within_them_the_torus():
    """Two slices of 4: within, the parts of half a megabyte; between, each device's quarter of it."""
    mesh = mesh_of((2, 2), (4,))
    bound = of(V5E, mesh, sent("all-gather", ("a",), 8, slices=2), sent("all-reduce", ("a",), 2, slices=2))
    assert V5E.network_bandwidth == 3.125e9
    gathered, reduced = MEGABYTE * (1 / 2) / 4, 2 * MEGABYTE * (1 / 2)
    assert bound.seconds["network"] == pytest.approx((gathered + reduced) / 3.125e9)
    assert bound.seconds["interconnect"] == pytest.approx(MEGABYTE * 3 / 4 / (2 * LINK))


def test_gpus_of_a_machine_have_nvlink_and_machines_the_network():
    mesh = mesh_of((32,), (32,))
    gather = of(H100, mesh, sent("all-gather", ("a",), 32, hosts=4))
    assert gather.seconds["interconnect"] == pytest.approx(MEGABYTE * 7 / 8 / 450e9)
    assert gather.seconds["network"] == pytest.approx(MEGABYTE * 3 / 4 / 8 / 50e9)
    exchange = of(H100, mesh, sent("all-to-all", ("a",), 32, hosts=4))
    assert exchange.seconds["interconnect"] == pytest.approx(MEGABYTE * 7 / 32 / 450e9)
    assert exchange.seconds["network"] == pytest.approx(MEGABYTE * 24 / 32 / 50e9)


def test_what_the_schedule_does_not_overlap_comes_on_top():
    hidden = sent("all-gather", ("a",), 16, overlapped=True, count=1000)
    exposed = sent("all-gather", ("b",), 16, count=500)
    one = 15 / 16 * MEGABYTE / (2 * LINK)
    bound = roofline(V5E, PLANE, 0.001 * 197e12, 0, [hidden, exposed])
    assert bound.by_axes == pytest.approx({("a",): 1000 * one, ("b",): 500 * one})
    assert bound.exposed == pytest.approx(500 * one)
    assert bound.bound == "interconnect"
    assert bound.scheduled_seconds == pytest.approx(1500 * one)  # the hidden part takes longer than the work
    longer = roofline(V5E, PLANE, 1.0 * 197e12, 0, [hidden, exposed])
    assert longer.scheduled_seconds == pytest.approx(1.0 + 500 * one)


def test_a_resource_without_a_figure_is_named_and_not_guessed():
    card = CHIPS["NVIDIA H100 PCIe"]
    bound = of(card, mesh_of((32,), (32,)), sent("all-gather", ("a",), 32, hosts=4))
    assert bound.unknown == ("interconnect", "network") and set(bound.seconds) == {"compute", "memory"}
    cores = of(CHIPS["TPU v3"], PLANE, sent("all-gather", ("a",), 16))
    assert cores.unknown == ("interconnect",)


def test_it_says_that_it_is_a_model():
    assert LABEL == "a model from public peak figures, not a measurement"
