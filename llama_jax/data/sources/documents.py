"""What a source of documents is, wherever they come from: random access, a count and an identity; no format."""

import bisect
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.core.errors import UserError

_HELD_OUT_SEED = 0
_READ_CHUNK = 64

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class BadRecordError(ValueError):
    """A document that cannot be used, whatever it is asked for; its neighbours may well be good.

    Args:
        reason: The kind of damage in one short word to count by, such as `not_utf8`, `missing_field` or `empty`.
        where: What leads a person to the record: `file:line`, or `file row 17`.
        message: What is wrong with it, on one line.
    """

    def __init__(self, reason: str, where: str, message: str) -> None:
        super().__init__(reason, where, message)  # all three, so that it can be pickled by a process of workers
        self.reason = reason
        self.where = where
        self.message = message

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def check_is_text(text: str, number: int) -> None:
    """Refuse a document that UTF-8 cannot express.

    Raises:
        BadRecordError: it holds an unpaired surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"holds an unpaired surrogate at character {error.start}"
        raise BadRecordError("surrogate", f"document {number}", message) from None


@runtime_checkable
class RecordSource(Protocol[_T_co]):
    """Records by number, whatever they are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> _T_co:
        """A record.

        Raises:
            BadRecordError: this record cannot be used; others can.
        """
        ...

    def identity(self) -> str:
        """One line that changes when a record, its place or the way of reading it does, and for no other reason."""
        ...


@runtime_checkable
class Documents(RecordSource[str | np.ndarray], Protocol):
    """Documents by number: texts, or ids of tokens (int32, BOS and EOS included) where they were prepared."""


class TextDocuments(list[str]):
    """Documents held in memory."""

    def identity(self) -> str:
        digest = hashlib.sha256()
        for text in self:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return f"texts sha256:{digest.hexdigest()}"


class SelectedDocuments:
    """Some of the documents of another source.

    Args:
        documents: The source selected from.
        indices: Numbers of its documents, in the order wanted.
        name: What the selection is; with the identity of `documents` it must determine `indices`.
    """

    def __init__(self, documents: Documents, indices: Int[np.ndarray, "selected"], name: str) -> None:
        self._documents = documents
        self._indices = indices
        self._name = name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> str | np.ndarray:
        return self._documents[int(self._indices[index])]

    def read_many(self, indices: Sequence[int]) -> Sequence[str | np.ndarray | BadRecordError]:
        """See the function `read_many`."""
        return read_many(self._documents, self._indices[np.asarray(indices, np.int64)].tolist())

    def identity(self) -> str:
        return f"{self._documents.identity()}, {self._name}"


class JoinedDocuments(Generic[_T]):
    """Several sources laid end to end.

    Args:
        parts: The sources in their order; some may be empty.
    """

    def __init__(self, parts: Sequence[RecordSource[_T]]) -> None:
        self.parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> _T:
        number, within = self._place(index)
        return self.parts[number][within]

    def read_many(self, indices: Sequence[int]) -> Sequence[_T | BadRecordError]:
        """See the function `read_many`; each part is asked once."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for position, index in enumerate(indices):
            number, within = self._place(index)
            wanted.setdefault(number, []).append((position, within))
        found: list[Any] = [None] * len(indices)
        for number, pairs in wanted.items():
            documents = read_many(self.parts[number], [within for _, within in pairs])
            for (position, _), document in zip(pairs, documents, strict=True):
                found[position] = document
        return found

    def identity(self) -> str:
        return "; ".join(part.identity() for part in self.parts)

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the part that holds a document, and the document's number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return number, int(index) - (self._ends[number - 1] if number else 0)


class ParsedRows(Generic[_T]):
    """Records that are parsed, when they are asked for, from the rows of a file or a data set.

    Args:
        rows: What is stored.
        parse: Gives the record from what is stored in a row and what leads to the row.
        name: What leads to a row, but for its number, such as `FILE row`.
    """

    def __init__(self, rows: RecordSource[Any], parse: Callable[[Any, str], _T], name: str) -> None:
        self._rows, self._parse, self._name = rows, parse, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> _T:
        return self._parse(self._rows[index], f"{self._name} {index}")

    def identity(self) -> str:
        return self._rows.identity()


def read_many(documents: RecordSource[_T], indices: Sequence[int]) -> Sequence[_T | BadRecordError]:
    """Several documents, in the order asked for, with the error in place of those that cannot be used. A source that
    can read several faster than one by one has a method of this name."""
    method = getattr(documents, "read_many", None)
    return read_one_by_one(documents, indices) if method is None else method(indices)


def read_one_by_one(documents: RecordSource[_T], indices: Sequence[int]) -> Sequence[_T | BadRecordError]:
    """`read_many` of a source that has no faster way."""
    found: list[_T | BadRecordError] = []
    for index in indices:
        try:
            found.append(documents[index])
        except BadRecordError as error:
            found.append(error)
    return found


def in_order(documents: Documents, numbers: Sequence[int] | None = None) -> Iterator[str | np.ndarray | BadRecordError]:
    """All documents, or those of some numbers, with the error in place of those that cannot be used."""
    numbers = range(len(documents)) if numbers is None else numbers
    for start in range(0, len(numbers), _READ_CHUNK):
        yield from read_many(documents, numbers[start : start + _READ_CHUNK])


def hold_out(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
    """Split whole documents into (training, validation), in their order. Depends on the number of documents and the
    fraction alone: every run and every host holds out the same.

    Args:
        fraction: Share of the documents to hold out; at least one document is held out and one is not.

    Raises:
        UserError: there are fewer than two documents.
    """
    count = len(documents)
    training, validation = split_indices(count, held_out_count(count, fraction))
    return (
        SelectedDocuments(documents, training, f"all but {fraction} held out"),
        SelectedDocuments(documents, validation, f"{fraction} held out"),
    )


def held_out_count(count: int, fraction: float) -> int:
    """How many of `count` documents a share of them is: at least one, and not all.

    Raises:
        UserError: there are fewer than two documents.
    """
    if count < 2:
        raise UserError(
            f"data.validation_fraction: {fraction} of {count} document leaves one side empty; give at least 2 documents"
        )
    return min(max(1, round(count * fraction)), count - 1)


def split_indices(count: int, held_out: int) -> tuple[Int[np.ndarray, "training"], Int[np.ndarray, "validation"]]:
    """Numbers of the documents to train on, and of `held_out` documents to hold out; each ascending."""
    # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
    order = np.random.RandomState(_HELD_OUT_SEED).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
