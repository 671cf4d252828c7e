"""The documents of a shard as they come out of the source, and what cleaning and rules make of each.

Depends on the documents and the settings alone. Writes nothing."""

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from llama_jax.core.errors import UserError
from llama_jax.data.preparation.cleaning import cleaned
from llama_jax.data.preparation.job import Count, Job
from llama_jax.data.preparation.rules.rule import Judgement
from llama_jax.data.preparation.shards import as_text
from llama_jax.data.sources.documents import BadRecordError, check_is_text, in_order


class Edit(NamedTuple):
    """What a rule, or a search for duplicates, took out of a document."""

    by: str
    """Name of the rule."""
    lines: Mapping[str, int]
    """How many lines or paragraphs went, by the name of the reason."""
    before: str
    after: str
    step: int
    """See `Examined.step`."""


class Examined(NamedTuple):
    """What became of a document."""

    document: int
    """Its number."""
    read: str
    """Its text after cleaning; empty where the record cannot be used."""
    text: str
    """What is left of that after all edits."""
    dropped: Mapping[str, Any] | None = None
    """Why it is left out: `reason`, and what else is known."""
    step: int = 0
    """How far it came: 0 if it cannot be used, 1 by its length, then by the rules in their order, and the searches."""
    edits: tuple[Edit, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    """What rules said of it."""


def examined(job: Job, shard: int, count: Count) -> Iterator[Examined]:
    """All documents of a shard, in order; counts them."""
    numbers = job.documents_of(shard)
    for document, record in zip(numbers, in_order(job.documents, numbers), strict=True):
        try:
            text = _text(record, document)
        except BadRecordError as error:
            if job.fail_on_bad:
                raise UserError(f"{error} (data.bad_records: skip leaves such documents out)") from None
            bad = {"reason": error.reason, "where": error.where, "message": error.message}
            yield Examined(document, "", "", bad)
            count(1, 0, 0)
            continue
        yield _judged(job, document, text)
        count(1, len(text.encode()), 0)


def _judged(job: Job, document: int, read: str) -> Examined:
    step, dropped = 1, _length_reason(job, read)
    text, edits, judgements = read, [], []
    for step, rule in enumerate(job.rules if dropped is None else (), start=2):
        before = text
        text, lines = rule.edited(before)
        if text != before:
            edits.append(Edit(rule.name, lines, before, text, step))
        judgement = rule.judged(text)
        judgements.append(judgement)
        if judgement.dropped is not None:
            dropped = judgement.dropped
            break
    if dropped is None and edits:
        dropped = _length_reason(job, text)
    return Examined(document, read, text, dropped, step, tuple(edits), tuple(judgements))


def examined_again(job: Job, shard: int, dropped: Container[int], count: Count) -> Iterator[Examined]:
    """The documents of a shard that was examined but for those that were dropped then, in order: with what the searches
    drop, or after all edits, some of which may leave nothing; counts all documents.

    Raises:
        UserError: a document is no longer what it was when it was examined.
    """
    searches = list(enumerate(job.searches, start=2 + len(job.rules)))
    edits_of = [(step, search.name, edit) for step, search in searches if (edit := search.edits(job, shard))]
    repeated = {
        document: (why, step) for step, search in searches for document, why in search.dropped(job, shard).items()
    }
    numbers = [document for document in job.documents_of(shard) if document not in dropped]
    count(len(job.documents_of(shard)) - len(numbers), 0, 0)
    for document, record in zip(numbers, in_order(job.documents, numbers), strict=True):
        try:
            read = text = _text(record, document)
        except BadRecordError as error:
            raise UserError(f"{error}; it was good when it was examined; do not change the source meanwhile") from None
        for rule in job.rules:
            text, _ = rule.edited(text)
        count(1, len(read.encode()), 0)
        if document in repeated:
            yield Examined(document, read, text, *repeated[document])
            continue
        edits = []
        for step, name, edit in edits_of:
            before = text
            text, lines = edit(document, before)
            if text != before:
                edits.append(Edit(name, lines, before, text, step))
        why = _length_reason(job, text) if edits else None
        yield Examined(document, read, text, why, 2 + len(job.rules) + len(job.searches), tuple(edits))


def _text(record: object, document: int) -> str:
    """The clean text of a document, by what was read of it.

    Raises:
        BadRecordError: it cannot be used.
        UserError: the source does not hold text.
    """
    text = cleaned(as_text(record))
    check_is_text(text, document)
    return text


def _length_reason(job: Job, text: str) -> Mapping[str, Any] | None:
    reason = job.cleaning.reason_to_drop(text)
    return None if reason is None else {"reason": reason, "characters": len(text)}
