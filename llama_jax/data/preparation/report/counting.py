"""Which pass counts what of a document, and how the tallies of shards, of which there may be very many, become one."""

import functools
import json
from collections.abc import Iterator

from etils import epath

from llama_jax.core.files import write_whole
from llama_jax.data.preparation.job import Count, Job, Pass
from llama_jax.data.preparation.reading import Examined
from llama_jax.data.preparation.report.tally import Place, Tally

_EXAMINED, _WRITTEN, _SUMS = "examined", "written", "sums"
_AT_ONCE = 256
"""Shards whose tallies are summed by one process, of a few hundred kilobytes each at most."""


class ShardTally:
    """The tally of one shard in one pass.

    Args:
        is_first: Whether the documents were not counted by an earlier pass.
        is_last: Whether what is not dropped now is kept.
    """

    def __init__(self, job: Job, shard: int, *, is_first: bool, is_last: bool) -> None:
        self._job, self._shard = job, shard
        self._is_first, self._is_last = is_first, is_last
        self._tally = Tally()

    def add(self, each: Examined) -> None:
        """Count what became of a document in this pass."""
        tally, place = self._tally, Place(each.document, self._job.origins.of(each.document), each.step)
        if self._is_first:
            tally.read(place, each.read)
        for edit in each.edits:
            tally.edited(place._replace(step=edit.step), edit)
        for judgement in each.judgements:
            tally.tagged(place, each.read, judgement.tags, is_dropped=judgement.dropped is not None)
            tally.measured(judgement.measures)
        if each.dropped is not None:
            tally.dropped(place, each.text, each.dropped, read=each.read)
        elif self._is_last:
            tally.kept(place, each.text)

    def write(self) -> None:
        """Write it below `Job.progress`."""
        kind = _WRITTEN if self._is_last else _EXAMINED
        _write(self._tally, _path(self._job, kind, self._shard))


def summing_passes(job: Job) -> Iterator[Pass]:
    """Makes fewer tallies of very many."""
    if job.shards > _AT_ONCE:
        amounts = [len(_group(job, number)) for number in range(_groups(job))]
        yield Pass("summing up", _sum, amounts, functools.partial(_path, job, _SUMS), "shards")


def tally_of(job: Job) -> Tally:
    """That of the whole corpus, once all passes are done."""
    if job.shards <= _AT_ONCE:
        return _merged(job, range(job.shards))
    return Tally.merged(_read(_path(job, _SUMS, number)) for number in range(_groups(job)))


def _sum(job: Job, number: int, count: Count) -> None:
    group = _group(job, number)
    _write(_merged(job, group), _path(job, _SUMS, number))
    count(len(group), 0, 0)


def _merged(job: Job, shards: range) -> Tally:
    kinds = (_EXAMINED, _WRITTEN) if job.searches else (_WRITTEN,)
    return Tally.merged(_read(_path(job, kind, shard)) for shard in shards for kind in kinds)


def _groups(job: Job) -> int:
    return -(-job.shards // _AT_ONCE)


def _group(job: Job, number: int) -> range:
    return range(number * _AT_ONCE, min(job.shards, (number + 1) * _AT_ONCE))


def _path(job: Job, kind: str, number: int) -> epath.Path:
    return job.progress / f"tally-{kind}-{number:05}.json"


def _write(tally: Tally, path: epath.Path) -> None:
    write_whole(path, json.dumps(tally.to_json()))


def _read(path: epath.Path) -> Tally:
    return Tally.from_json(json.loads(path.read_bytes()))
