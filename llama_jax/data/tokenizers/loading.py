"""From a path or a bundle of files to a tokenizer."""

import re
from collections.abc import Callable, Mapping

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import read_bounded
from llama_jax.data.tokenizers.conversion import files_with_tokens_beside
from llama_jax.data.tokenizers.hugging_face import HuggingFaceTokenizer
from llama_jax.data.tokenizers.llama2c import Llama2cTokenizer
from llama_jax.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llama_jax.data.tokenizers.settings import SETTINGS_FILES
from llama_jax.data.tokenizers.tiktoken_model import TiktokenTokenizer
from llama_jax.data.tokenizers.tokenizer import Tokenizer

MODEL_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
"""Names of tokenizer files, the preferred first: `tokenizer.json` may hold tokens that were added later."""

_LARGEST_FILE = 64 * 2**20  # bytes; Llama 3's tokenizer.json has 17 MB


def load_tokenizer(path: epath.PathLike, content: bytes | None = None) -> Tokenizer:
    """Load a tokenizer: sentencepiece or tiktoken (`.model`), Hugging Face's (`.json`) or llama2.c's (`.bin`).

    Args:
        path: the file, whose suffix tells the format, or a directory that holds one. Configuration files beside it
            are read too where it has a name of `MODEL_FILES`.
        content: what the file holds, when it has been read already; nothing is read then.

    Raises:
        UserError: there is no such file, or it is broken or in another format.
    """
    file = epath.Path(path)
    name = {".json": "tokenizer.json", ".bin": "tokenizer.bin"}.get(file.suffix, "tokenizer.model")
    if content is not None:
        return tokenizer_from_files({name: content}, str(path))
    if file.is_dir():
        return tokenizer_from_files(_read(file, (*MODEL_FILES, *SETTINGS_FILES)), str(path))
    if not file.exists():
        raise UserError(f"tokenizer {path}: no such file; give a .model, a tokenizer.json or a llama2.c .bin")
    beside = _read(file.parent, SETTINGS_FILES) if file.name in MODEL_FILES else {}
    return tokenizer_from_files({name: read_bounded(file, _LARGEST_FILE), **beside}, str(path))


def tokenizer_from_files(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """Make the tokenizer of a bundle of files, which are named as Hugging Face names them.

    Args:
        where: what the files came from, for messages.

    Raises:
        UserError: none of `MODEL_FILES` is there, or a file is broken.
    """
    name = next((name for name in MODEL_FILES if name in files), None)
    if name is None:
        raise UserError(f"tokenizer {where}: holds none of {', '.join(MODEL_FILES)}")
    model = files[name]
    beside = {other: files[other] for other in (*SETTINGS_FILES, *MODEL_FILES) if other in files and other != name}
    for each in (name, *beside):
        if len(files[each]) > _LARGEST_FILE:
            raise UserError(f"tokenizer {where}: {each} has {len(files[each])} bytes, more than {_LARGEST_FILE}")
    try:
        return _kind(name, model)(model, beside)
    except UserError as error:  # names its file
        raise UserError(f"tokenizer {where}: {error}") from None
    except ValueError as error:
        raise UserError(f"tokenizer {where}: {error} ({len(model)} bytes)") from None


def has_tokenizer(files: Mapping[str, bytes]) -> bool:
    """Whether a bundle of files holds a tokenizer."""
    return any(name in files for name in MODEL_FILES)


def _kind(name: str, model: bytes) -> Callable[[bytes, Mapping[str, bytes]], Tokenizer]:
    if name == "tokenizer.json":
        return HuggingFaceTokenizer
    if name == "tokenizer.bin":
        return Llama2cTokenizer
    # A sentencepiece model opens with the byte 0x0A, so no line of it is taken for one of tiktoken's.
    return TiktokenTokenizer if re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", model) else _sentencepiece


def _sentencepiece(model: bytes, beside: Mapping[str, bytes]) -> Tokenizer:
    files = files_with_tokens_beside(model, beside)
    if files is None:
        return SentencePieceTokenizer(model, beside)
    return HuggingFaceTokenizer(files.pop("tokenizer.json"), files)


def _read(directory: epath.Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found = (name for name in names if (directory / name).exists())
    return {name: read_bounded(directory / name, _LARGEST_FILE) for name in found}
