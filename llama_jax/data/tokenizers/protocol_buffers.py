"""Messages in the wire format of protocol buffers, read and written without a schema.

The generated classes that libraries ship load only with the release of protobuf that made them."""

import struct
from collections.abc import Iterator


def message_bytes(*fields: tuple[int, int | float | str | bytes]) -> bytes:
    """A message of these fields."""
    parts: list[bytes] = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3), _varint(value)]
        elif isinstance(value, float):
            parts += [_varint(number << 3 | 5), struct.pack("<f", value)]
        else:
            content = value.encode() if isinstance(value, str) else value
            parts += [_varint(number << 3 | 2), _varint(len(content)), content]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def message_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message by number: numbers as int, all else as bytes.

    Raises:
        ValueError: it is cut short.
    """
    offset = 0
    while offset < len(message):
        key, offset = _varint_at(message, offset)
        if key & 7 == 0:
            value, offset = _varint_at(message, offset)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            size, offset = _varint_at(message, offset)
        yield key >> 3, message[offset : offset + size]
        offset += size


def _varint_at(message: bytes, offset: int) -> tuple[int, int]:
    """A number, and the offset behind it."""
    value = 0
    for position, byte in enumerate(message[offset : offset + 10]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, offset + position + 1
    raise ValueError("it is cut short")


def as_bytes(value: int | bytes | None) -> bytes:
    """A field of bytes or text; empty where the message has another."""
    return value if isinstance(value, bytes) else b""


def as_int(value: int | bytes | None, default: int) -> int:
    """A field of a number; the default where the message has none."""
    return value if isinstance(value, int) else default
