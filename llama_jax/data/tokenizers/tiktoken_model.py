"""Llama 3's `tokenizer.model`: byte-pair encoding in tiktoken's format, one token and its rank a line."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers.added_tokens import stated_names
from llama_jax.data.tokenizers.tokenizer import Tokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Splits text into words, within which Llama 3 merges bytes."""

# Llama 3.1's names (meta-llama/llama-models, llama3/api/tokenizer.py). Llama 3 has the same ids for those both use.
_NAMED_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
_SPECIAL_TOKENS = (*_NAMED_TOKENS, *(f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(_NAMED_TOKENS))))

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})")
_LONGEST_TOKEN = 1024  # bytes; Llama 3's has 128

# Meta's bounds: longer texts make tiktoken panic, longer runs make it slow (openai/tiktoken#195).
_LONGEST_TEXT = 400_000
_LONGEST_RUN = 25_000
_RUN = re.compile(r"\s+|\S+")


class TiktokenTokenizer(Tokenizer):
    """Llama 3's tokenizer: a file of ranks, with Llama 3's pattern and 256 control tokens after them. Files beside it
    may name these otherwise, and more.

    Args:
        model: The content of a `tokenizer.model` file.
        beside: Configuration files beside it.

    Raises:
        ValueError: a line is not a token in base64 and the next rank, or a byte has no token.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, beside: Mapping[str, bytes] | None = None) -> None:
        import tiktoken  # when first used: commands that only print help start without it

        super().__init__(model, beside)
        self.ranks = read_ranks(model)
        self.special_tokens = _control_tokens(len(self.ranks), self._beside)
        self._encoding = tiktoken.Encoding(
            "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=self.ranks, special_tokens=dict(self.special_tokens)
        )
        self.vocab_size = len(self.ranks) + len(self.special_tokens)
        ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        stops = [self.special_tokens[name] for name in ends if name in self.special_tokens]
        self._adopt_settings(len(self.ranks), len(self.ranks) + 1, adds_bos=True, stop_ids=stops)

    def decode(self, ids: Sequence[int]) -> str:
        ordinary = [int(token) for token in ids if token < len(self.ranks)]
        return self._encoding.decode_bytes(ordinary).decode(errors="replace")

    def token_bytes(self) -> list[bytes]:
        return [*self.ranks, *[b""] * len(self.special_tokens)][: self.vocab_size]

    def _encode_ordinary(self, text: str) -> list[int]:
        return [token for part in _slices(text) for token in self._encoding.encode_ordinary(part)]


def _control_tokens(first: int, beside: Mapping[str, bytes]) -> dict[str, int]:
    """Ids by name, in their order.

    Raises:
        UserError: files beside the model name two alike, or leave a gap.
    """
    names = dict(enumerate(_SPECIAL_TOKENS, first))
    names |= {number: name for number, name in stated_names(beside).items() if number >= first}
    ids = {names[number]: number for number in sorted(names)}
    if len(ids) < len(names) or max(names) >= first + len(names):
        raise UserError(f"added tokens: are not {len(names)} different names for the ids from {first} on")
    return ids


def read_ranks(model: bytes) -> dict[bytes, int]:
    """Rank, which is the id, of each token. Ranks count up from 0, one a line.

    Raises:
        ValueError: names the line that is wrong.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(model.splitlines()):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number + 1} is not a token in base64 and its rank")
        try:
            token = base64.b64decode(match[1], validate=True)
        except binascii.Error:
            raise ValueError(f"line {number + 1} is not a token in base64 and its rank") from None
        if int(match[2]) != number:
            raise ValueError(f"line {number + 1} has rank {int(match[2])}; ranks count up from 0, so {number} is due")
        if not 0 < len(token) <= _LONGEST_TOKEN:
            raise ValueError(f"line {number + 1} has a token of {len(token)} bytes")
        if token in ranks:
            raise ValueError(f"line {number + 1} repeats the token of line {ranks[token] + 1}")
        ranks[token] = number
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"it has no token for the byte 0x{missing[0]:02X}, so not every text can be encoded")
    return ranks


def _slices(text: str) -> Iterator[str]:
    """The text cut as Meta's reference code cuts it, so that the ids are the same."""
    for start in range(0, len(text), _LONGEST_TEXT):
        part = text[start : start + _LONGEST_TEXT]
        begin = 0
        for run in _RUN.finditer(part) if len(part) > _LONGEST_RUN else ():
            for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield part[begin:cut]
                begin = cut
        yield part[begin:]
