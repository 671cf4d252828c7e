"""Text to token ids and back: sentencepiece models (LLaMA 1 and 2) and llama2.c's own format; training a new one.

Text never turns into a control token: `<s>` written in a document is four ordinary characters. Knows nothing of chat
templates, rows or files of text."""

import hashlib
import heapq
import io
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import sentencepiece
from etils import epath

from llama_jax.core.errors import UserError

_CONTROL_TOKENS = 3  # unk, bos, eos: ids 0, 1, 2 in every LLaMA tokenizer that falls back to bytes
_FIRST_PIECE = _CONTROL_TOKENS + 256  # ids 3..258 stand for single bytes
_SMALLEST_VOCABULARY = _FIRST_PIECE + 5
_SENTENCE_BYTES = 4192  # sentencepiece silently drops longer training sentences
_RESERVED_BY_TRAINER = "\u2585"  # sentencepiece's mark for unknown pieces: it drops a sentence that holds one


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package knows of a tokenizer. `decode(encode(text)) == text` but for what a format cannot
    express (sentencepiece reads U+2581 as a space)."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, counting control tokens."""
        ...

    @property
    def bos_id(self) -> int:
        """Id that opens every document."""
        ...

    @property
    def eos_id(self) -> int:
        """Id that closes every document."""
        ...

    @property
    def file_name(self) -> str:
        """Name under which `to_bytes` is stored so that `load_tokenizer` knows the format."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `to_bytes`, in hexadecimal."""
        ...

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of the text, between BOS and EOS where asked for.

        Raises:
            UnicodeEncodeError: the text holds half a surrogate pair, which UTF-8 cannot express.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Control tokens give no text; bytes that are not UTF-8 become U+FFFD; the space that
        `encode` puts before the first word is taken off again."""
        ...

    def to_bytes(self) -> bytes:
        """The model file."""
        ...


class SentencePieceTokenizer:
    """A sentencepiece model (Kudo and Richardson 2018, arXiv:1808.06226), the format of LLaMA 1 and 2.

    Args:
        model: The content of a `tokenizer.model` file.

    Raises:
        ValueError: this is not a sentencepiece model, or one without BOS or EOS.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        if not model:
            raise ValueError("it is empty")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError("it is not a sentencepiece model") from None
        self._model = model
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError("it has no BOS or no EOS token, and documents are kept apart by both")

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        return SentencePieceTokenizer, (self._model,)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        try:
            ids: list[int] = self._processor.encode(text)
        except RuntimeError:
            text.encode()  # names the half surrogate, which the binding only calls a failed cast
            raise
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids])

    def to_bytes(self) -> bytes:
        return self._model


class Llama2cTokenizer:
    """The tokenizer file of llama2.c: int32 longest piece, then of each piece float32 score, int32 length and bytes.

    Encodes as karpathy/llama2.c run.c does: a space before the text, code points (bytes for unknown ones), then again
    and again the pair that gives the piece of the best score, the leftmost of equals. Control and byte pieces are never
    matched with text, which run.c leaves to chance.

    Args:
        model: The content of a `tokenizer.bin` file.

    Raises:
        ValueError: the bytes are no such file, or are cut short.
    """

    file_name = "tokenizer.bin"
    bos_id = 1
    eos_id = 2

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._pieces, self._scores = _llama2c_pieces(model)
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(self._pieces[_FIRST_PIECE:], _FIRST_PIECE):
            self._ids.setdefault(piece, token)
        if b" " not in self._ids:
            raise ValueError("it has no piece for a space, which every text is opened with")
        self.vocab_size = len(self._pieces)
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        symbols: list[int] = []
        for character in " " + text if text else "":
            point = character.encode()
            token = self._ids.get(point)
            symbols += [byte + _CONTROL_TOKENS for byte in point] if token is None else [token]
        return [self.bos_id] * bos + self._merged(symbols) + [self.eos_id] * eos

    def decode(self, ids: Sequence[int]) -> str:
        text = bytearray()
        at_start = True
        for token in ids:
            if token in (self.bos_id, self.eos_id):
                at_start = at_start or token == self.bos_id
                continue
            if _CONTROL_TOKENS <= token < _FIRST_PIECE:
                text.append(token - _CONTROL_TOKENS)
            else:
                piece = self._pieces[token]
                text += piece[1:] if at_start and piece.startswith(b" ") else piece
            at_start = False
        return text.decode(errors="replace")

    def to_bytes(self) -> bytes:
        return self._model

    def _merged(self, symbols: list[int]) -> list[int]:
        """Merge pairs until none forms a piece. A heap over a linked list gives what run.c finds by scanning the whole
        text for each merge, in n log n instead of n^2."""
        following = [*range(1, len(symbols)), -1] if symbols else []
        preceding = list(range(-1, len(symbols) - 1))
        candidates: list[tuple[float, int, int, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                first, second = symbols[left], symbols[right]
                merged = self._ids.get(self._pieces[first] + self._pieces[second])
                if merged is not None:
                    heapq.heappush(candidates, (-self._scores[merged], left, right, first, second, merged))

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


def _llama2c_pieces(model: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces and scores by id. The file does not say how many there are: they go on until its end."""
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
        pieces.append(model[offset : offset + length])
        scores.append(score)
        offset += length
    if pieces[_CONTROL_TOKENS:_FIRST_PIECE] != [b"<0x%02X>" % byte for byte in range(256)]:
        raise ValueError("it is not a llama2.c tokenizer: tokens 3 to 258 are not the bytes <0x00> to <0xFF>")
    return pieces, scores


def load_tokenizer(path: epath.PathLike, content: bytes | None = None) -> Tokenizer:
    """Load a sentencepiece model (`.model`) or a llama2.c tokenizer (`.bin`).

    Args:
        path: the file; its suffix tells the format.
        content: what the file holds, when it has been read already; else it is read.

    Raises:
        UserError: there is no such file, or it is broken or of another kind.
    """
    file = epath.Path(path)
    if content is None and file.is_dir():
        raise UserError(f"tokenizer {path}: is a directory; name the file in it, such as {file / 'tokenizer.model'}")
    if content is None and not file.exists():
        raise UserError(f"tokenizer {path}: no such file; give a sentencepiece .model or a llama2.c .bin")
    if file.suffix == ".json":
        raise UserError(f"tokenizer {path}: JSON tokenizers are not read; give the sentencepiece tokenizer.model")
    model = file.read_bytes() if content is None else content
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\n", model):
        raise UserError(f"tokenizer {path}: is a tiktoken file (Llama 3); give a sentencepiece .model")
    try:
        return Llama2cTokenizer(model) if file.suffix == ".bin" else SentencePieceTokenizer(model)
    except ValueError as error:
        raise UserError(f"tokenizer {path}: {error} ({len(model)} bytes)") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Train byte-pair encoding with LLaMA's settings (arXiv:2302.13971, section 2.1): numbers split into digits,
    unknown characters into bytes, text left as it is. The same texts give the same bytes.

    Args:
        texts: Documents. They are taken apart into lines; all lines are held in memory while training.
        vocab_size: Number of ids to make, with 3 control tokens and 256 bytes among them.

    Raises:
        UserError: there is no text, or the vocabulary is too small or too large for it.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size: {vocab_size} is too small; control tokens and bytes alone take {_FIRST_PIECE}, "
            f"so use at least {_SMALLEST_VOCABULARY}"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.99995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=_SENTENCE_BYTES,
            num_threads=2,  # recorded in the model file, so it must not follow the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(vocab_size, str(error)) from error
    return SentencePieceTokenizer(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, the long ones cut (at a space where there is one), so that sentencepiece drops none."""
    longest = _SENTENCE_BYTES // 4  # characters; UTF-8 takes at most 4 bytes for one
    for text in texts:
        for line in text.replace(_RESERVED_BY_TRAINER, "\n").split("\n"):
            while len(line) > longest:
                end = line.rfind(" ", 1, longest)
                end = longest if end < 0 else end
                yield line[:end]
                line = line[end:]
            if line:
                yield line


def _training_error(vocab_size: int, message: str) -> Exception:
    """What sentencepiece's complaint means to the user; the complaint itself when it is none of those known."""
    if largest := re.search(r"too high .* a value <= (\d+)", message):
        return UserError(f"vocab_size: {vocab_size} is too large for this text; at most {largest[1]} fit")
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size: {vocab_size} is too small for this text; its characters need at least {smallest[1]}"
        )
    if "sentences_.empty()" in message:
        return UserError("no text to train a tokenizer on; give documents with at least one non-empty line")
    return RuntimeError(message)
