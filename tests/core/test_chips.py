"""Figures of chips against what the makers say of whole machines."""

import pytest

from llama_jax.core.chips import CHIPS


def test_a_kind_that_is_not_in_the_table_has_no_figures():
    assert CHIPS.get("TPU v99") is None
    chip = CHIPS.get("TPU v5 lite")
    assert chip is not None and chip.flops == 197e12


@pytest.mark.parametrize(("kind", "chips", "petaflops"), [("TPU v5 lite", 256, 50.63), ("TPU v6 lite", 256, 234.9)])
def test_a_pod_has_the_flops_that_its_documentation_says(kind, chips, petaflops):
    assert chips * CHIPS[kind].flops == pytest.approx(petaflops * 1e15, rel=0.005)


@pytest.mark.parametrize(
    ("kind", "gigabytes"), [("TPU v5 lite", 400), ("TPU v6 lite", 800), ("TPU v5", 1200)]
)  # "bidirectional inter-chip interconnect bandwidth per chip"
def test_the_links_of_a_chip_are_a_tenth_slower_than_the_documentation_says(kind, gigabytes):
    chip = CHIPS[kind]
    assert chip.link_bandwidth is not None and chip.torus_dimensions is not None
    links = 2 * chip.torus_dimensions
    assert 2 * links * chip.link_bandwidth == pytest.approx(0.9 * gigabytes * 1e9)


def test_the_network_of_a_v5e_pod_is_what_its_documentation_says():
    network = CHIPS["TPU v5 lite"].network_bandwidth
    assert network is not None and 256 * network * 8 == 6.4e12


@pytest.mark.parametrize("kind", CHIPS)
def test_a_program_may_use_nearly_all_of_the_memory(kind):
    chip = CHIPS[kind]
    assert chip.usable_bytes is None or 0.9 * chip.memory_bytes < chip.usable_bytes < chip.memory_bytes
