"""What all kinds of tokenizer files share."""

import copy
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import shown
from llama_jax.data.tokenizers.settings import Settings, read_settings

LONGEST_TOKEN = 2**14
"""Bytes of a token at the most: few ids of longer ones would be a text without end. Published ones have hundreds."""


class Tokenizer(ABC):
    """What the rest of the package knows about a tokenizer: one made of a model file and the configuration files beside
    it. Each kind says how ordinary text is encoded and ids decoded. `decode(encode(text)) == text` but for what a
    format cannot express (sentencepiece reads U+2581 as a space; a normaliser changes the text).

    Args:
        model: The content of the model file.
        beside: `tokenizer_config.json`, `chat_template.jinja` and the like, by name.

    Raises:
        ValueError: a file is not what it should be; the message is one line.
    """

    file_name: ClassVar[str]
    """Name under which `to_bytes` is stored so that `load_tokenizer` knows the format."""
    vocab_size: int
    """Number of ids, counting control tokens."""
    bos_id: int
    """Id that opens every document; that of EOS where the vocabulary has no BOS."""
    eos_id: int
    """Id that closes every document."""
    stop_ids: tuple[int, ...]
    """Ids that end an answer: EOS first, then those that end a turn."""
    adds_bos: bool
    """Whether the model expects BOS before plain text that it is to continue."""
    special_tokens: Mapping[str, int]
    """The control tokens by their names. Ordinary text never becomes one of them."""
    unk_id: int | None = None
    """Id of what is not in the vocabulary, if there is such a token."""

    def __init__(self, model: bytes, beside: Mapping[str, bytes] | None = None) -> None:
        if not model:
            raise ValueError("it is empty")
        self._model = model
        self._beside = dict(beside or {})
        self.fingerprint = hashlib.sha256(model).hexdigest()
        """SHA-256 of `to_bytes`, in hexadecimal."""
        self.settings: Settings = read_settings(self._beside)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self._model, self._beside, self.vocab_size)

    def for_model(self, rows: int, where: str) -> "Tokenizer":
        """The tokenizer as a model uses it that has a row for each id below `rows`. Tokens beyond are harmless where
        neither text nor the chat template gives them, as one for padding; asked for nevertheless, they are refused.

        Args:
            where: what it came from, for messages.

        Raises:
            UserError: the model lacks a row for a token that is given; names the token and who gives it.
        """
        for token, name, giver in self._given() if rows < self.vocab_size else ():
            if token >= rows:
                raise UserError(
                    f"{where}: {self.file_name} has token {token}, {shown(name)}, which {giver}, but the model has "
                    f"{rows} rows; use the tokenizer that the model was trained with"
                )
        return self._cut(rows)

    def control_id(self, name: str) -> int:
        """The id of a control token.

        Raises:
            UserError: the model has no row for it.
        """
        token = self.special_tokens[name]
        self._check_rows([token])
        return token

    @property
    def chat_template(self) -> str | None:
        """Jinja source that lays a conversation out as text; None where the model was given none.

        Raises:
            UserError: the model has several, none of which is called default.
        """
        templates = self.settings.chat_templates
        if templates and "default" not in templates:
            raise UserError(
                f"chat template: of those of the model, {', '.join(sorted(templates))}, none is named default; rename "
                "one in tokenizer_config.json, or choose another layout (data.template)"
            )
        return templates.get("default")

    @property
    def token_names(self) -> dict[str, str]:
        """What chat templates call tokens: `bos_token`, `eos_token`, and those that the model names, such as
        `pad_token`. A vocabulary without BOS has no name for one."""
        names = {token: name for name, token in self.special_tokens.items()}
        bos = "" if self.bos_id == self.eos_id else names.get(self.bos_id, "")
        ours = {"bos_token": bos, "eos_token": names.get(self.eos_id, "")}
        unknown = {"unk_token": names[self.unk_id]} if self.unk_id in names else {}
        return ours | unknown | dict(self.settings.names)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Ids of the text, between BOS and EOS where asked for.

        Args:
            special: Names of control tokens in the text become their ids; else they are ordinary text.

        Raises:
            UnicodeEncodeError: the text holds an unpaired surrogate, which UTF-8 cannot express.
            UserError: it names a control token for which the model has no row.
        """
        text.encode()  # the libraries replace an unpaired surrogate, or call it a failed cast
        ids = self._encode_special(text) if special else self._encode_ordinary(text)
        if special:
            self._check_rows(ids)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_document(self, text: str) -> list[int]:
        """What `encode` gives for a text between BOS and EOS. The first text takes longer where that makes the others
        faster, so this is for those who have many.

        Raises:
            UnicodeEncodeError: as `encode`.
        """
        text.encode()
        return [self.bos_id, *self._encode_document(text), self.eos_id]

    @property
    def whole_tokens(self) -> Mapping[str, int]:
        """The tokens that are found in text before it is encoded: the control tokens, and others that were added."""
        return self.special_tokens

    def to_bytes(self) -> bytes:
        """The model file."""
        return self._model

    def files(self) -> dict[str, bytes]:
        """The model file and those that were beside it, by name: all that `tokenizer_from_files` needs."""
        return {self.file_name: self._model, **self._beside}

    def with_chat_template(self, source: str) -> "Tokenizer":
        """The same tokenizer with another chat template."""
        return type(self)(self._model, {**self._beside, "chat_template.jinja": source.encode()})

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Control tokens give no text, nor do ids beyond the vocabulary; bytes that are not UTF-8
        become U+FFFD; the space that `encode` puts before the first word is taken off again."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """What each token adds to a text, by id: bytes that may be part of a character. Control tokens add nothing, nor
        do ids that no token has."""

    @abstractmethod
    def _encode_ordinary(self, text: str) -> list[int]: ...

    def _encode_document(self, text: str) -> list[int]:
        return self._encode_ordinary(text)

    def _encode_special(self, text: str) -> list[int]:
        """The stretches between control tokens are encoded each by itself, as Meta's reference code does."""
        ids: list[int] = []
        for index, part in enumerate(self._special_names.split(text)):
            ids += [self.special_tokens[part]] if index % 2 else self._encode_ordinary(part)
        return ids

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        return names_pattern(self.special_tokens)

    def _given(self) -> Iterator[tuple[int, str, str]]:
        """Tokens that a model must have rows for, by id and name, and who gives them; of those of text the last one."""
        control = {token: name for name, token in self.special_tokens.items()}
        last = next((token for token in reversed(range(self.vocab_size)) if token not in control), None)
        if last is not None:
            yield last, self.decode([last]), "text can give"
        for token, name in sorted(control.items()):
            if token in (self.bos_id, self.eos_id):
                yield token, name, "opens texts" if token == self.bos_id else "ends texts"
            elif self._is_written(name):
                yield token, name, "the chat template writes"

    def _is_written(self, name: str) -> bool:
        """Whether the chat template names a token, or the use that it has (`pad_token`)."""
        template = "\n".join(self.settings.chat_templates.values())
        uses = [field for field, token in self.token_names.items() if token == name]
        return name in template or any(re.search(rf"\b{re.escape(field)}\b", template) for field in uses)

    def _cut(self, rows: int) -> "Tokenizer":
        if rows >= self.vocab_size:
            return self
        made = copy.copy(self)
        made.vocab_size = rows
        made.stop_ids = tuple(token for token in self.stop_ids if token < rows)
        return made

    def _check_rows(self, ids: Sequence[int]) -> None:
        if ids and (largest := max(ids)) >= self.vocab_size:
            name = next(name for name, token in self.special_tokens.items() if token == largest)
            raise UserError(f"tokenizer: the model has {self.vocab_size} rows, none for token {largest}, {shown(name)}")

    def _adopt_settings(self, bos_id: int, eos_id: int, *, adds_bos: bool, stop_ids: Sequence[int] = ()) -> None:
        """Set the ids and habits: those of the model file, unless the files beside it say otherwise."""
        settings = self.settings
        self.bos_id = self._id_named("bos_token", settings.bos_token, bos_id)
        self.eos_id = self._id_named("eos_token", settings.eos_token, eos_id)
        self.adds_bos = adds_bos if settings.adds_bos is None else settings.adds_bos
        for stop in settings.stop_ids:
            if stop >= self.vocab_size:
                raise UserError(f"generation_config.json: eos_token_id {stop} is not below {self.vocab_size} tokens")
        self.stop_ids = tuple(dict.fromkeys((self.eos_id, *settings.stop_ids, *stop_ids)))

    def _id_named(self, field: str, name: str | None, default: int) -> int:
        if name is None:
            return default
        if name not in self.special_tokens:
            raise ValueError(f"{field} {name!r} is not among its control tokens")
        return self.special_tokens[name]


def _unpickled(kind: type[Tokenizer], model: bytes, beside: Mapping[str, bytes], rows: int) -> Tokenizer:
    return kind(model, beside)._cut(rows)  # pyright: ignore[reportPrivateUsage]


def names_pattern(names: Mapping[str, int]) -> re.Pattern[str]:
    """Finds the names in a text, the longest first; splitting by it gives text and names in turn."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
