"""The tokenizer file of llama2.c."""

import heapq
import struct
from collections.abc import Iterable, Mapping, Sequence

from llama_jax.data.tokenizers.tokenizer import LONGEST_TOKEN, Tokenizer

CONTROL_TOKENS = 3
"""unk, bos, eos: ids 0, 1, 2 in every LLaMA tokenizer that falls back to bytes."""
FIRST_PIECE = CONTROL_TOKENS + 256
"""Ids 3..258 are single bytes."""


class Llama2cTokenizer(Tokenizer):
    """The tokenizer file of llama2.c: int32 longest piece, then of each piece float32 score, int32 length and bytes.

    Encodes as karpathy/llama2.c run.c does: a space before the text, code points (bytes for unknown ones), then again
    and again the pair that gives the piece of the best score, the leftmost of equals. Control and byte pieces are never
    matched with text, which run.c leaves to chance.

    Args:
        model: The content of a `tokenizer.bin` file.
        beside: Configuration files beside it.

    Raises:
        ValueError: the bytes are not such a file, or are cut short.
    """

    file_name = "tokenizer.bin"

    def __init__(self, model: bytes, beside: Mapping[str, bytes] | None = None) -> None:
        super().__init__(model, beside)
        self.pieces, self.scores = _llama2c_pieces(model)
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces[FIRST_PIECE:], FIRST_PIECE):
            self._ids.setdefault(piece, token)
        if b" " not in self._ids:
            raise ValueError("it has no piece for a space, which opens every text")
        self.vocab_size = len(self.pieces)
        # As its exporter writes them. Files without names are those of LLaMA.
        names = (self.pieces[token].decode(errors="replace").strip("\n") for token in (1, 2))
        self.special_tokens = dict(zip(names, (1, 2), strict=True))
        self.unk_id = 0
        self._adopt_settings(1, 2, adds_bos=True)

    def decode(self, ids: Sequence[int]) -> str:
        text = bytearray()
        at_start = True
        for token in ids:
            if token in (self.bos_id, self.eos_id):
                at_start = at_start or token == self.bos_id
                continue
            if CONTROL_TOKENS <= token < FIRST_PIECE:
                text.append(token - CONTROL_TOKENS)
            elif token < self.vocab_size:
                piece = self.pieces[token]
                text += piece[1:] if at_start and piece.startswith(b" ") else piece
            at_start = False
        return text.decode(errors="replace")

    def token_bytes(self) -> list[bytes]:
        ordinary = [*(bytes([byte]) for byte in range(256)), *self.pieces[FIRST_PIECE:]]
        return [*[b""] * CONTROL_TOKENS, *ordinary][: self.vocab_size]

    def _encode_ordinary(self, text: str) -> list[int]:
        symbols: list[int] = []
        for character in " " + text if text else "":
            point = character.encode()
            token = self._ids.get(point)
            symbols += [byte + CONTROL_TOKENS for byte in point] if token is None else [token]
        return self._merged(symbols)

    def _merged(self, symbols: list[int]) -> list[int]:
        """Merge pairs until none forms a piece. A heap over a linked list gives what run.c finds by scanning the whole
        text for each merge, in n log n instead of n^2."""
        following = [*range(1, len(symbols)), -1] if symbols else []
        preceding = list(range(-1, len(symbols) - 1))
        candidates: list[tuple[float, int, int, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                first, second = symbols[left], symbols[right]
                merged = self._ids.get(self.pieces[first] + self.pieces[second])
                if merged is not None:
                    heapq.heappush(candidates, (-self.scores[merged], left, right, first, second, merged))

        for left, right in enumerate(following):
            consider(left, right)
        while candidates:
            _, left, right, first, second, merged = heapq.heappop(candidates)
            if (symbols[left], symbols[right]) != (first, second):
                continue  # one of the two was merged with another neighbour meanwhile
            symbols[left], symbols[right] = merged, -1
            following[left] = following[right]
            if following[left] >= 0:
                preceding[following[left]] = left
            consider(preceding[left], left)
            consider(left, following[left])
        return [token for token in symbols if token >= 0]


def llama2c_file(pieces: Iterable[tuple[bytes, float]]) -> bytes:
    """The file of the given pieces and their scores, in the order of their ids."""
    pieces = list(pieces)
    longest = max((len(piece) for piece, _ in pieces), default=0)
    entries = (struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces)
    return struct.pack("<i", longest) + b"".join(entries)


def _llama2c_pieces(model: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces and scores by id. The file does not say how many there are: they continue to its end."""
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset < len(model):
        if offset + 8 > len(model):
            raise ValueError(f"it ends within token {len(pieces)}")
        score, length = struct.unpack_from("<fi", model, offset)
        offset += 8
        if length < 0 or offset + length > len(model):
            raise ValueError(f"it ends within token {len(pieces)}, which claims {length} bytes")
        if length > LONGEST_TOKEN:
            raise ValueError(f"token {len(pieces)} has {length} bytes; a token may have {LONGEST_TOKEN}")
        pieces.append(model[offset : offset + length])
        scores.append(score)
        offset += length
    if pieces[CONTROL_TOKENS:FIRST_PIECE] != [b"<0x%02X>" % byte for byte in range(256)]:
        raise ValueError("it is not a llama2.c tokenizer: tokens 3 to 258 are not the bytes <0x00> to <0xFF>")
    return pieces, scores
