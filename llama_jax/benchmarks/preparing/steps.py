"""`benchmark prepare`: the steps of `prepare` one by one, on one core, by the very functions of the command."""

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.preparing.documents import small_tokenizer, write_documents
from llama_jax.benchmarks.results import say
from llama_jax.data.config import DataConfig
from llama_jax.data.preparation.cleaning import Cleaning
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job, Pass
from llama_jax.data.preparation.near.config import NearDuplicatesConfig
from llama_jax.data.preparation.near.making import searches_of
from llama_jax.data.preparation.reading import examined
from llama_jax.data.preparation.report.origins import origins_of
from llama_jax.data.preparation.rules.config import LanguagesConfig, QualityConfig
from llama_jax.data.preparation.rules.making import rules_of
from llama_jax.data.preparation.rules.rule import Rule
from llama_jax.data.preparation.shards import shard_bounds
from llama_jax.data.sources.opening import open_source
from llama_jax.data.sources.prepared import ShardWriter, id_dtype
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Step:
    """What is done to all documents."""

    name: str
    seconds: float
    """On one core."""
    read: int = 0
    """Bytes of files."""
    written: int = 0
    is_serial: bool = False
    """One process does it for the whole corpus, whatever their number."""


def measure_steps(config: PrepareBenchmarkConfig) -> dict[str, Any]:
    """The steps with every setting that needs nothing but the text; the median of some turns for each."""
    with tempfile.TemporaryDirectory(dir=config.folder) as made:
        folder = Path(made)
        (folder / "source").mkdir()
        text_bytes = write_documents(config.made, folder / "source", files=1)
        say(config, f"{config.made.documents:,} documents, {text_bytes / 1e6:,.1f} MB of text; one core")
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else small_tokenizer()
        by_turn = [list(_steps(folder / "source", tokenizer, folder / str(turn))) for turn in range(config.turns)]
    steps = []
    for taken in zip(*by_turn, strict=True):
        seconds = turns.summary([step.seconds for step in taken])
        step = replace(taken[0], seconds=seconds["median"])
        megabytes, documents = text_bytes / step.seconds / 1e6, config.made.documents / step.seconds
        say(config, f"{step.name:<26}{megabytes:>9,.1f} MB/s {documents:>11,.0f} documents/s  ±{seconds['noise']:.0%}")
        steps.append({**vars(step), "megabytes_per_second": megabytes, "documents_per_second": documents})
    return {"documents": config.made.documents, "text_bytes": text_bytes, "steps": steps}


def _steps(source: Path, tokenizer: Tokenizer, output: Path) -> Iterator[Step]:
    """The steps, each measured once."""
    size = _size(source)

    def index() -> None:
        open_source(f"{source}/*.jsonl", "text").identity()

    yield replace(_step("indexing the source", index), read=size, is_serial=True)
    documents = open_source(f"{source}/*.jsonl", "text")
    settings = PrepareConfig(
        data=DataConfig(source=f"{source}/*.jsonl"),
        near_duplicates=NearDuplicatesConfig(threshold=0.75),
        languages=LanguagesConfig(keep=("all",) if importlib.util.find_spec("py3langid") else ()),
        quality=QualityConfig(rules=("gopher", "c4")),
    )
    job = Job(
        documents=documents,
        tokenizer=tokenizer,
        cleaning=Cleaning(),
        bounds=shard_bounds(documents, settings.shard_megabytes),
        directory=epath.Path(output),
        fail_on_bad=True,
        origins=origins_of(documents, settings.data.source),
        searches=searches_of(settings),
    )
    job.progress.mkdir(parents=True)
    texts: list[str] = []

    def read() -> None:
        texts[:] = (each.text for shard in range(job.shards) for each in examined(job, shard, _uncounted))

    yield replace(_step("reading and cleaning", read), read=size)
    rules = rules_of(settings)
    for rule in rules:
        judge = functools.partial(_judge, rule)
        judge(texts[:1])  # loads its model
        yield _step(type(rule).__name__, functools.partial(judge, texts))
    yield from _search_steps(job, texts)
    yield replace(_step("reading again", read), read=size)
    yield _step("edits of the rules again", lambda: [rule.edited(text) for rule in rules for text in texts])
    tokenizer.encode_document(texts[0])
    yield from _writing_steps(tokenizer, texts, output)


def _search_steps(job: Job, texts: Sequence[str]) -> Iterator[Step]:
    """What near-duplicates take: signatures, and the passes that compare them."""
    (search,) = job.searches
    before = _size(job.progress)

    def note() -> None:
        for shard in range(job.shards):
            notes = search.notes(job, shard)
            for number in job.documents_of(shard):
                notes.add(number, texts[number])
            notes.write()

    yield replace(_step("MinHash signatures", note), written=_size(job.progress) - before)
    for task in search.passes(job):
        before = _size(job.progress)
        step = _step(task.title, functools.partial(_make, task, job))
        written = _size(job.progress) - before
        yield replace(step, read=before, written=written, is_serial=task.unit == "sources")


def _make(task: Pass, job: Job) -> None:
    for number in range(len(task.amounts)):
        task.work(job, number, _uncounted)


def _writing_steps(tokenizer: Tokenizer, texts: Sequence[str], output: Path) -> Iterator[Step]:
    found: list[list[int]] = []
    yield _step("tokenization", lambda: found.extend(map(tokenizer.encode_document, texts)))
    path = output / "shard"

    def write() -> None:
        with ShardWriter(path, id_dtype(tokenizer.vocab_size)) as shard:
            for ids, text in zip(found, texts, strict=True):
                shard.write(ids, len(text.encode()))
            shard.finish("shard")

    yield replace(_step("writing shards", write), written=path.stat().st_size)


def _step(name: str, work: Callable[[], object]) -> Step:
    started = time.perf_counter()
    work()
    return Step(name, time.perf_counter() - started)


def _judge(rule: Rule, texts: Sequence[str]) -> None:
    for text in texts:
        rule.judged(rule.edited(text)[0])


def _size(folder: epath.PathLike) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _uncounted(documents: int, text_bytes: int, tokens: int) -> None:
    """A `Count` that nobody reads."""
