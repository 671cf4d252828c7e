"""`tokenizer.json`, Hugging Face's format, through their `tokenizers` library."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_bytes, json_object
from llama_jax.data.tokenizers.added_tokens import MOST_TOKENS, tokens_beside
from llama_jax.data.tokenizers.byte_pair_core import BytePairCore, core_of
from llama_jax.data.tokenizers.byte_pairs import BYTE_CUT, byte_characters
from llama_jax.data.tokenizers.guard.guarded_tokenizer import GuardedTokenizer
from llama_jax.data.tokenizers.guard.parts import is_bounded
from llama_jax.data.tokenizers.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    piece_bytes,
)
from llama_jax.data.tokenizers.settings import Settings
from llama_jax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<|startoftext|>")
_EOS_NAMES = ("<|end_of_text|>", "</s>", "<|endoftext|>")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, with `tokenizer_config.json` beside it to say which tokens are BOS and EOS.

    Where nothing names them, LLaMA's names are tried; a vocabulary without BOS opens documents with EOS. Tokens that
    only the files beside it know are added to it. Truncation and padding set in the file are switched off.

    Args:
        model: The content of the file.
        beside: Configuration files beside it.

    Raises:
        ValueError: the library refuses the file, or ordinary text encodes to a control token.
    """

    file_name = "tokenizer.json"

    def __init__(self, model: bytes, beside: Mapping[str, bytes] | None = None) -> None:
        content = json_object(model, self.file_name)
        if new := _tokens_to_add(content, beside or {}):
            content["added_tokens"] = [*content.get("added_tokens", ()), *new]
            model = json_bytes(content)
        super().__init__(model, beside)
        is_byte_fallback = "ByteFallback" in component_types(content.get("decoder"))
        self._library_model, library_content = model, content
        if _takes_whole_names(content.get("model"), is_byte_fallback):
            library_content = _with_cuts(content, self.settings)
            self._library_model = json.dumps(library_content).encode()  # read by the library alone
        self._unbounded = None if is_bounded(content) else library_content  # our own cuts are harmless
        self._tokenizer = self._library_tokenizer()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > MOST_TOKENS:
            raise ValueError(f"it has an id {self.vocab_size - 1}, beyond {MOST_TOKENS} tokens")
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = {token.content: number for number, token in sorted(added.items()) if token.special}
        self.unk_id = _unknown_id(content["model"], vocabulary)
        opening = _opening_token(content.get("post_processor"))
        eos = self._first_known(self.settings.eos_token, *_EOS_NAMES)
        if eos is None:
            raise ValueError("it has no known EOS token; name it as eos_token in tokenizer_config.json beside it")
        bos = self._first_known(self.settings.bos_token, opening, *_BOS_NAMES)
        self._adopt_settings(eos if bos is None else bos, eos, adds_bos=opening is not None)
        self._bytes: dict[int, int] = {}
        if is_byte_fallback:
            byte_names = {f"<0x{byte:02X}>": byte for byte in range(256)}
            self._bytes = {vocabulary[name]: byte for name, byte in byte_names.items() if name in vocabulary}
        for name, token in self.special_tokens.items():
            if token != self.unk_id and token in self._encode_ordinary(name):
                raise ValueError(f"control token {name!r} is also what the same ordinary text encodes to")

    def decode(self, ids: Sequence[int]) -> str:
        ids = [int(token) for token in ids]
        if self._bytes.keys().isdisjoint(ids):
            return self._tokenizer.decode(ids, skip_special_tokens=True)
        return self._tokenizer.decoder.decode(list(self._settled(ids)))

    @property
    def whole_tokens(self) -> Mapping[str, int]:
        return {token.content: number for number, token in sorted(self._tokenizer.get_added_tokens_decoder().items())}

    def content(self) -> dict[str, Any]:
        """The file, parsed."""
        return json_object(self._model, self.file_name)

    def tokens_and_types(self) -> tuple[list[str], list[int]]:
        """Each token and its type, as in sentencepiece; ids that no token has are unused, under llama.cpp's name."""
        added = self._tokenizer.get_added_tokens_decoder()
        tokens = [f"[PAD{token}]" for token in range(self.vocab_size)]
        types = [UNUSED] * self.vocab_size
        for name, token in self._tokenizer.get_vocab().items():
            if token >= self.vocab_size:
                continue
            tokens[token], types[token] = name, NORMAL
            if token in added:
                types[token] = CONTROL if added[token].special else USER_DEFINED
            if token in self._bytes:
                types[token] = BYTE
            if token == self.unk_id:
                types[token] = UNKNOWN
        return tokens, types

    def token_bytes(self) -> list[bytes]:
        spelled = _spelled_bytes if "ByteLevel" in component_types(self.content().get("decoder")) else piece_bytes
        pairs = zip(*self.tokens_and_types(), strict=True)
        return [b"" if kind == UNUSED else spelled(text, kind) for text, kind in pairs]

    def _encode_ordinary(self, text: str) -> list[int]:
        with _one_line_errors():
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _encode_document(self, text: str) -> list[int]:
        core = self._core
        ids = None if core is None or any(name in text for name in self._added) else core.encode(text)
        return self._encode_ordinary(text) if ids is None else ids

    @cached_property
    def _core(self) -> BytePairCore | None:
        """A fraction of a second and tens of megabytes, which only many texts are worth."""
        return core_of(self.content()) if self._unbounded is None else None

    @cached_property
    def _added(self) -> list[str]:
        """Names that the library takes from text before it is split into words."""
        return sorted(self.whole_tokens.keys() - self.special_tokens.keys())

    def _encode_special(self, text: str) -> list[int]:
        with _one_line_errors():
            return self._seeing_special.encode(text, add_special_tokens=False).ids

    @cached_property
    def _seeing_special(self) -> "tokenizers.Tokenizer | GuardedTokenizer":
        """A second copy: whether names of control tokens are seen is a switch, which threads would share."""
        return self._library_tokenizer()

    def _library_tokenizer(self) -> "tokenizers.Tokenizer | GuardedTokenizer":
        import tokenizers  # when first used: commands that only print help start without it

        with _one_line_errors():
            tokenizer = (
                tokenizers.Tokenizer.from_buffer(self._library_model)
                if self._unbounded is None
                else GuardedTokenizer(self._unbounded)
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        needed = (self.settings.bos_token, self.settings.eos_token)
        for name in self.settings.special_names:
            token = tokenizer.token_to_id(name)
            # Some name an ordinary word, such as "!", as what they pad with; it stays one.
            is_word = token not in added and tokenizer.encode(name, add_special_tokens=False).ids == [token]
            if name not in special and token is not None and (name in needed or not is_word):
                tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
        return tokenizer

    def _first_known(self, *names: str | None) -> int | None:
        return next((self.special_tokens[name] for name in names if name and name in self.special_tokens), None)

    def _settled(self, ids: Sequence[int]) -> Iterator[str]:
        """Names of the tokens, those of bytes that are not UTF-8 replaced by U+FFFD. The library's decoder gives up a
        whole run of bytes for one that is wrong, so that text which was right would change with what follows it."""
        control = set(self.special_tokens.values())
        ordinary = [token for token in ids if token not in control and token < self.vocab_size]
        for are_bytes, run in itertools.groupby(ordinary, self._bytes.__contains__):
            if not are_bytes:
                yield from filter(None, map(self._tokenizer.id_to_token, run))
                continue
            for character in bytes(self._bytes[token] for token in run).decode(errors="surrogateescape"):
                if "\udc80" <= character <= "\udcff":
                    yield "\ufffd"
                else:
                    yield from (f"<0x{byte:02X}>" for byte in character.encode())


def _tokens_to_add(content: Mapping[str, Any], beside: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """What the files beside a `tokenizer.json` add to its `added_tokens`."""
    model, listed = content.get("model"), content.get("added_tokens") or []
    try:
        table = model["vocab"] if isinstance(model, dict) else {}
        plain = {piece: number for number, (piece, _) in enumerate(table)} if isinstance(table, list) else table
        known = {**plain, **{token["content"]: token["id"] for token in listed}}
        size = max([len(plain), *(token["id"] + 1 for token in listed)])
    except (KeyError, TypeError, ValueError):
        return []  # the library says what is wrong with it
    stated = tokens_beside(beside, known, size, HuggingFaceTokenizer.file_name)
    there = {token["content"] for token in listed}
    return [token for token in stated if token["content"] not in there]


_BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}


def _spelled_bytes(text: str, kind: int) -> bytes:
    """What a token of GPT-2's kind adds to a text; those that were added may have other characters than its own."""
    if kind in (CONTROL, UNKNOWN):
        return b""
    return bytes(map(_BYTE_OF.__getitem__, text)) if _BYTE_OF.keys() >= set(text) else text.encode()


def _unknown_id(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    """Id of the token for what is not in the vocabulary; Unigram has its place in the list, the others its name."""
    return model["unk_id"] if "unk_id" in model else vocabulary.get(model.get("unk_token") or "")


def _takes_whole_names(model: Any, is_byte_fallback: bool) -> bool:
    """Whether a model takes any piece of the vocabulary that a text spells, the names of control tokens and of bytes as
    well, which sentencepiece takes from no text."""
    if not isinstance(model, dict):
        return False
    return model.get("type") == "Unigram" or (is_byte_fallback and bool(model.get("ignore_merges")))


def _with_cuts(content: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A `tokenizer.json` that cuts text which spells such a name behind the first character of it."""
    special = {token["content"] for token in content.get("added_tokens") or () if token.get("special")}
    names = [name for name in {*special, *settings.special_names} if len(name) > 1]
    longest_first = [name.replace(" ", SPACE) for name in sorted(names, key=len, reverse=True)]
    pattern = "|".join([BYTE_CUT, *(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in longest_first)])
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "MergedWithPrevious", "invert": False}
    parts = [part for part in (content.get("pre_tokenizer"), cut) if part is not None]
    return content | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}


def component_types(component: Any) -> set[str]:
    """Types of a part of `tokenizer.json`, and of the members where it is a sequence."""
    if not isinstance(component, dict):
        return set()
    members = [value for value in component.values() if isinstance(value, list)]
    return {str(component.get("type"))}.union(*(component_types(each) for value in members for each in value))


def _opening_token(processor: Any) -> str | None:
    """Name of the token that the file's own template puts before a text."""
    if not isinstance(processor, dict):
        return None
    for member in processor.get("processors", ()):
        if (name := _opening_token(member)) is not None:
            return name
    first = next(iter(processor.get("single", ())), {})
    return first["SpecialToken"]["id"] if "SpecialToken" in first else None


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """The library's errors, and its panics, which are not an `Exception`, as a ValueError with their first line."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"the tokenizers library refuses it: {lines[0][:200]}") from None
