"""Faults of hardware, as they are made for tests."""

import ctypes

import jax


def flip_a_bit(array: jax.Array, device: int, byte: int = 0, bit: int = 0) -> None:
    """In the memory of one device, as a fault of its chip would."""
    (held,) = [shard.data for shard in array.addressable_shards if shard.device.id == device]
    held.block_until_ready()
    memory = (ctypes.c_uint8 * held.nbytes).from_address(held.unsafe_buffer_pointer())
    memory[byte] ^= 1 << bit
