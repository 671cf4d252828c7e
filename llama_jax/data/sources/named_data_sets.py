"""Data sets by their name: of tensorflow-datasets, read without TensorFlow, and of Hugging Face `datasets`."""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from etils import epath

from llama_jax.core.errors import UserError, nearest
from llama_jax.data.sources.array_records import ArrayRecordFile
from llama_jax.data.sources.documents import BadRecordError, JoinedDocuments, ParsedRows, RecordSource
from llama_jax.data.sources.parquet_files import ParquetValues
from llama_jax.data.sources.record_text import RecordParser, missing_field

_FILE_THREADS = 16
_SAMPLES = 256
# A name may hold a scheme and a version after colons of their own, a split colons between brackets.
_TFDS = re.compile(r"(?P<name>(?:[a-z0-9]+://)?[^:]+(?::\d[\d.*]*)?)(?::(?P<split>[^/]+))?")
_HUGGING_FACE = re.compile(r"(?P<name>[^:]+)(?::(?P<split>[^/]+))?")
_DEFAULT_SPLIT = "train"

_T = TypeVar("_T")


class _Slice:
    def __init__(self, rows: RecordSource[Any], first: int, count: int) -> None:
        self._rows, self._first, self._count = rows, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> Any:
        return self._rows[self._first + index]

    def identity(self) -> str:
        return f"{self._rows.identity()} {self._first} {self._count}"


class _HubRows:
    """A data set of Hugging Face: the values of one column, or dictionaries of all."""

    def __init__(self, rows: Any, column: str | None) -> None:
        self._rows, self._column = rows if column is None else rows.select_columns([column]), column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        return row if self._column is None else row[self._column]

    def identity(self) -> str:
        """Follows the number of rows and the values of 256 that are spread evenly; any other change is not seen."""
        sample = np.linspace(0, len(self) - 1, min(len(self), _SAMPLES)).astype(int)
        return f"{len(self)} {[self[int(index)] for index in np.unique(sample)]!r}"


class _DataSet(JoinedDocuments[Any]):
    """The rows of a data set, one part after the other.

    Args:
        name: Name, split and what is read, for the identity.
    """

    def __init__(self, parts: Sequence[RecordSource[Any]], name: str) -> None:
        super().__init__(parts)
        self._name = name

    def identity(self) -> str:
        """Follows the name, and each part as far as its own identity does."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.identity().encode(errors="surrogatepass") + b"\0")
        return f"{self._name} sha256:{digest.hexdigest()}"


def _documents(
    parts: Sequence[RecordSource[Any]], parse: Callable[[Any, str], _T], field: str | None, name: str
) -> ParsedRows[_T]:
    return ParsedRows(_DataSet(parts, f"{name} {field or 'records'}"), parse, f"{name} example")


def _parsed_tf_example(features: Any, parser: RecordParser[_T], example: Any, where: str) -> _T:
    """The document in a serialised tf.train.Example, of which no other field is parsed."""
    try:
        if isinstance(example, dict):  # a row of parquet, which has one column
            (example,) = example.values()
        values = features.deserialize_example_np(example)
        value = values if parser.field is None else values[parser.field]
    except Exception as error:  # whatever a parser raises over bytes that are not an example
        raise BadRecordError("damaged", where, f"cannot be decoded: {_first_line(error)}") from None
    return parser.of_value(value, where)


def open_tfds(spec: str, parser: RecordParser[_T]) -> ParsedRows[_T]:
    """The documents of `tfds:NAME[/CONFIG][:SPLIT]` or `tfds:DIRECTORY[:SPLIT]`.

    The directory is that of one version, which holds dataset_info.json. A named data set that is not prepared yet is
    downloaded and prepared. Files must be array_record or parquet. A split may be a part, such as `train[:10%]`.

    Raises:
        UserError: there is no such data set, split or field of text, or it would need TensorFlow.
    """
    found = _TFDS.fullmatch(spec.removeprefix("tfds:"))
    if found is None:
        raise UserError(f"data.source: {spec}: write tfds:NAME[/CONFIG][:SPLIT] or tfds:DIRECTORY[:SPLIT]")
    import tensorflow_datasets as tfds  # a second that only its users should pay

    name, split_name = found["name"], found["split"] or _DEFAULT_SPLIT
    builder, directory = _builder(tfds, spec, name), f"{name}:{split_name}"
    features: Any = builder.info.features
    if parser.field is not None:
        features = tfds.features.FeaturesDict({parser.field: _text_feature(features, parser.field, directory)})
    # The library's own sources read parquet whole and run past the end of a part of a split, so files are read here.
    try:
        instructions = builder.info.splits[split_name].file_instructions
    except (ValueError, KeyError) as error:
        raise UserError(f"data.source: tfds:{directory}: {_first_line(error)}") from None
    file_format = getattr(builder.info.file_format, "value", str(builder.info.file_format))
    readers: dict[str, Callable[[epath.Path], RecordSource[Any]]] = {
        "array_record": ArrayRecordFile,
        "parquet": lambda path: ParquetValues(path, None),
    }
    if file_format not in readers:
        raise UserError(
            f"data.source: tfds:{directory}: its files are {file_format}, which only TensorFlow reads; prepare it "
            "again with file_format='array_record'"
        )

    def part(instruction: Any) -> _Slice:
        rows = readers[file_format](epath.Path(instruction.filename))
        count = instruction.take if instruction.take >= 0 else len(rows) - instruction.skip
        if instruction.skip + count > len(rows):
            raise UserError(f"data.source: {instruction.filename}: holds {len(rows)} examples, fewer than its data set")
        return _Slice(rows, instruction.skip, count)

    with ThreadPoolExecutor(_FILE_THREADS) as threads:
        parts = list(threads.map(part, instructions))
    name = f"tfds:{builder.info.full_name}:{split_name}"
    return _documents(parts, functools.partial(_parsed_tf_example, features, parser), parser.field, name)


def _text_feature(features: Any, field: str, directory: str) -> Any:
    fields = list(features) if isinstance(features, dict) or hasattr(features, "keys") else []
    if field not in fields:
        raise UserError(f"data.source: tfds:{directory}: {missing_field(field, fields)}")
    feature = features[field]
    if getattr(feature, "shape", None) != () or getattr(feature, "np_dtype", None) not in (object, str, bytes):
        raise UserError(f"data.source: tfds:{directory}: field '{field}' (data.text_field) is not a feature of text")
    return feature


def _builder(tfds: Any, spec: str, name: str) -> Any:
    directory, is_directory = epath.Path(name).expanduser(), name.startswith(("/", ".", "~")) or "://" in name
    if is_directory and not (directory / "dataset_info.json").is_file():
        raise UserError(
            f"data.source: {spec}: no dataset_info.json in {directory}; name the directory of one version, such as "
            "NAME/1.0.0"
        )
    try:
        if is_directory:
            return tfds.builder_from_directory(directory)
        builder = tfds.builder(name, try_gcs=False)
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # the library raises whatever its many parts raise
        raise UserError(f"data.source: {spec}: {_first_line(error)}") from None
    return builder


def check_has_split(spec: str) -> None:
    """Refuse a data set of tensorflow-datasets without a split.

    Raises:
        UserError: it has none.
    """
    if (found := _TFDS.fullmatch(spec.removeprefix("tfds:"))) is None or found["split"] is None:
        raise UserError(f"data.source: {spec}: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")


def open_hugging_face(spec: str, parser: RecordParser[_T]) -> ParsedRows[_T]:
    """The documents of `hf:[ORGANISATION/]NAME[:SPLIT]`, `hf:ORGANISATION/NAME/CONFIG[:SPLIT]` or
    `hf:DIRECTORY[:SPLIT]`: what `save_to_disk` wrote, or files that `load_dataset` knows.

    Raises:
        UserError: the extra `hf` is not installed, or there is no such data set, split or column of strings.
    """
    found = _HUGGING_FACE.fullmatch(spec.removeprefix("hf:"))
    if found is None:
        raise UserError(f"data.source: {spec}: write hf:NAME[/CONFIG][:SPLIT] or hf:DIRECTORY[:SPLIT]")
    try:
        import datasets  # four seconds that only its users should pay
    except ImportError:
        raise UserError(f"data.source: {spec} needs the extra 'hf'; pip install 'llama_jax[hf]'") from None
    name, split = found["name"], found["split"] or _DEFAULT_SPLIT
    try:
        rows: Any = _hugging_face_rows(datasets, name, split)
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its many parts raise
        raise UserError(f"data.source: {spec}: {_first_line(error)}") from None
    if parser.field is not None:
        _check_strings(rows, parser.field, spec)
    directory = epath.Path(name).expanduser()
    shown = directory.name if directory.is_dir() else name  # a corpus may be moved
    return _documents([_HubRows(rows, parser.field)], parser.of_value, parser.field, f"hf:{shown}:{split}")


def _check_strings(rows: Any, column: str, spec: str) -> None:
    if column not in rows.column_names:
        raise UserError(f"data.source: {spec}: {missing_field(column, rows.column_names)}")
    if getattr(rows.features[column], "dtype", None) not in ("string", "large_string", "binary", "large_binary"):
        kind = getattr(rows.features[column], "dtype", type(rows.features[column]).__name__)
        raise UserError(f"data.source: {spec}: column '{column}' (data.text_field) is of type {kind}, not strings")


def _hugging_face_rows(datasets: Any, name: str, split: str) -> Any:
    directory = epath.Path(name).expanduser()
    if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
        found = datasets.load_from_disk(str(directory))
        if not isinstance(found, dict):
            return found
        if split not in found:
            splits = ", ".join(found)
            raise UserError(f"data.source: hf:{name}: no split '{split}'; it has {splits}{nearest(split, found)}")
        return found[split]
    if directory.is_dir() or name.startswith(("/", ".", "~")):
        return datasets.load_dataset(str(directory), split=split)
    *organisation, data_set = name.split("/")[:2]
    config = name.split("/", 2)[2:]
    return datasets.load_dataset("/".join([*organisation, data_set]), *config, split=split)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
