"""sentencepiece models: the tokenizer files of LLaMA 1 and 2."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llama_jax.data.tokenizers.guard.parts import check_replacements
from llama_jax.data.tokenizers.tokenizer import LONGEST_TOKEN, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, in sentencepiece and in GGUF."""

SPACE = "\u2581"
"""How a piece writes a space."""

_BPE = 2


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class PieceModel:
    """What a model file says, as far as LLaMA's tokenizers use it."""

    pieces: tuple[Piece, ...]
    is_bpe: bool = True
    charsmap: bytes = b""
    """Table of the characters that are replaced before encoding, as Unicode normalisation does."""
    joins_spaces: bool = False
    """Takes spaces off at both ends, and makes several of them one, before encoding."""
    adds_space_prefix: bool = True


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model (Kudo and Richardson 2018, arXiv:1808.06226), the format of LLaMA 1 and 2.

    Pieces of type CONTROL are never matched with text. Those of type USER_DEFINED are, by sentencepiece's design: they
    are vocabulary, not control tokens.

    Args:
        model: The content of a `tokenizer.model` file.
        beside: Configuration files beside it.

    Raises:
        ValueError: this is not a sentencepiece model, or one without BOS or EOS, or it could make a small text very
            large.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, beside: Mapping[str, bytes] | None = None) -> None:
        import sentencepiece  # when first used: commands that only print help start without it

        super().__init__(model, beside)
        _check_growth(model)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError("it is not a sentencepiece model") from None
        processor = self._processor
        self.vocab_size: int = processor.get_piece_size()
        self.special_tokens = {
            processor.id_to_piece(token): token
            for token in range(self.vocab_size)
            if processor.is_control(token) or processor.is_unknown(token)
        }
        self.unk_id = processor.unk_id()
        if processor.bos_id() < 0 or processor.eos_id() < 0:
            raise ValueError("it has no BOS or no EOS token; documents are separated by both")
        self._adopt_settings(processor.bos_id(), processor.eos_id(), adds_bos=True)

    @property
    def token_names(self) -> dict[str, str]:
        return {"unk_token": self._processor.id_to_piece(self._processor.unk_id())} | super().token_names

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids if token < self.vocab_size])

    def token_bytes(self) -> list[bytes]:
        pieces = read_piece_model(self._model).pieces[: self.vocab_size]
        return [piece_bytes(piece.text, piece.type) for piece in pieces]

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._processor.encode(text)


def piece_bytes(text: str, kind: int) -> bytes:
    """What a piece of a type adds to a text."""
    if kind == BYTE:
        return bytes.fromhex(text[3:5])
    return b"" if kind in (CONTROL, UNKNOWN) else text.replace(SPACE, " ").encode()


def _check_growth(model: bytes) -> None:
    """Refuse a file whose pieces or normalisers make a small text large, before anybody else reads it."""
    try:
        fields = list(_message_fields(model))
    except ValueError:
        raise ValueError("it is not a sentencepiece model") from None
    for field, value in fields:
        if field == 1 and len(piece := _as_bytes(value)) > LONGEST_TOKEN:
            raise ValueError(f"it has a piece of {len(piece)} bytes; a piece may have {LONGEST_TOKEN}")
        if field in (3, 5):  # how text is normalised, and the text of pieces again
            check_replacements(_as_bytes(dict(_message_fields(_as_bytes(value))).get(2)))


def read_piece_model(model: bytes) -> PieceModel:
    """Read a model file. Meant for files that sentencepiece has accepted.

    Raises:
        ValueError: it is cut short.
    """
    pieces: list[Piece] = []
    is_bpe, charsmap, joins_spaces, adds_space_prefix = False, b"", True, True
    for field, value in _message_fields(model):
        if field == 1 and isinstance(value, bytes):
            parts = dict(_message_fields(value))
            pieces.append(
                Piece(
                    _as_bytes(parts.get(1)).decode(errors="replace"),
                    struct.unpack("<f", _as_bytes(parts.get(2)) or bytes(4))[0],
                    _as_int(parts.get(3), NORMAL),
                )
            )
        elif field == 2 and isinstance(value, bytes):
            is_bpe = dict(_message_fields(value)).get(3) == _BPE
        elif field == 3 and isinstance(value, bytes):
            spec = dict(_message_fields(value))
            charsmap, joins_spaces = _as_bytes(spec.get(2)), bool(_as_int(spec.get(4), 1))
            adds_space_prefix = bool(_as_int(spec.get(3), 1))
    return PieceModel(tuple(pieces), is_bpe, charsmap, joins_spaces, adds_space_prefix)


def piece_model_bytes(model: PieceModel, *, unk: str, bos: str, eos: str) -> bytes:
    """A model file for byte-pair encoding that leaves the text as it is and falls back to bytes if it has them."""
    has_bytes = int(any(piece.type == BYTE for piece in model.pieces))
    trainer = _message_bytes((3, _BPE), (4, len(model.pieces)), (35, has_bytes), (45, unk), (46, bos), (47, eos))
    normalizer = _message_bytes((1, "identity"), (3, int(model.adds_space_prefix)), (4, 0))
    pieces = (_message_bytes((1, piece.text), (2, piece.score), (3, piece.type)) for piece in model.pieces)
    return b"".join(_message_bytes((1, piece)) for piece in pieces) + _message_bytes((2, trainer), (3, normalizer))


# Protocol buffers, without a schema: the generated classes that libraries ship load only with the release of protobuf
# that made them.


def _message_bytes(*fields: tuple[int, int | float | str | bytes]) -> bytes:
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


def _message_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
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
    if offset < len(message) and (byte := message[offset]) < 0x80:  # most often, and much faster
        return byte, offset + 1
    value = 0
    for position, byte in enumerate(message[offset : offset + 10]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, offset + position + 1
    raise ValueError("it is cut short")


def _as_bytes(value: int | bytes | None) -> bytes:
    """A field of bytes or text; empty where the message has another."""
    return value if isinstance(value, bytes) else b""


def _as_int(value: int | bytes | None, default: int) -> int:
    """A field of a number; the default where the message has none."""
    return value if isinstance(value, int) else default
