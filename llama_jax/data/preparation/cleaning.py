"""What `prepare` changes in a text, which texts it leaves out, and which it treats as the same.

Deliberately little, so that a model learns what was written: no Unicode normalisation, no trimming, no judgement of
quality or language. Those belong to whoever chose the text."""

import hashlib
from dataclasses import dataclass

CLEANING_VERSION = 1
"""Part of the settings of a prepared directory: raise it when the same text comes to be cleaned differently."""

_HASH_BYTES = 16


@dataclass(frozen=True)
class Cleaning:
    """Bounds on the length of a document, both inclusive."""

    minimum_characters: int = 1
    """Fewest characters, white space at both ends not counted."""
    maximum_characters: int | None = None
    """Most characters; None: no bound."""

    def reason_to_drop(self, text: str) -> str | None:
        """`empty`, `too_short` or `too_long`; None for a text to keep."""
        length = len(text.strip())
        if length == 0:
            return "empty"
        if length < self.minimum_characters:
            return "too_short"
        if self.maximum_characters is not None and len(text) > self.maximum_characters:
            return "too_long"
        return None


def cleaned(text: str) -> str:
    """The text with line ends `\\n` for `\\r\\n`, without NUL characters and without a byte order mark at its start."""
    return text.removeprefix("\ufeff").replace("\0", "").replace("\r\n", "\n")


def text_hash(text: str) -> bytes:
    """16 bytes that two texts share only if they differ in nothing but white space.

    By chance two of 10^12 documents would share them with a probability of 10^-15. Never all zero.
    """
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=_HASH_BYTES).digest()
    return digest if any(digest) else b"\1" * _HASH_BYTES
