"""A mixture of five formats: each has its share, whoever reads the rows, and a run on it goes on bit for bit."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import command_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from test_restart import wait_for_steps

from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import open_mixture
from llama_jax.data.rows.positions import merge_positions
from llama_jax.data.rows.progress import progress
from llama_jax.data.tokenizers import load_tokenizer

LETTERS = "abcde"
"""A source has texts of its own letter, so that a row tells where it is from."""
WEIGHTS = (67.0, 15.0, 10.0, 4.5, 3.5)
ROWS, BATCH, STREAMS = 10_000, 400, 16


def texts_of(letter: str) -> list[str]:
    return [" ".join([letter * (1 + number % 7)] * (3 + number % 29)) for number in range(70)]


class Letters(tfds.core.GeneratorBasedBuilder):
    """The texts of the first source."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((number, {"text": text}) for number, text in enumerate(texts_of(LETTERS[0])))


@pytest.fixture(scope="module")
def sources(small_run, tmp_path_factory) -> list[tuple[str, float]]:
    """TFDS as array_record, parquet, JSONL, plain text, and shards that `prepare` wrote, with their weights."""
    folder = tmp_path_factory.mktemp("five_formats")
    _, parquet_texts, json_texts, plain_texts, prepared_texts = map(texts_of, LETTERS)
    Letters(data_dir=folder, file_format="array_record").download_and_prepare()
    pq.write_table(pa.table({"text": parquet_texts}), folder / "b.parquet", row_group_size=9)
    for name, texts in (("c.jsonl", json_texts), ("e.jsonl", prepared_texts)):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "d").mkdir()
    for number in range(10):  # short texts of one file would make one document
        (folder / "d" / f"{number}.txt").write_text("\n\n".join(plain_texts[number::10]))
    given = ("--data.source", folder / "e.jsonl", "--data.tokenizer", small_run.tokenizer)
    assert command_runs.call("prepare", *given, "--output", folder / "e", "--workers", 0) == 0
    (data_files,) = (path.parent for path in folder.rglob("dataset_info.json"))
    assert list(data_files.glob("*.array_record*"))
    specs = [f"tfds:{data_files}:train", *(str(folder / name) for name in ("b.parquet", "c.jsonl", "d/*.txt", "e"))]
    return list(zip(specs, WEIGHTS, strict=True))


def loaders(sources, tokenizer, workers: int, processes: int) -> list[Loader]:
    config = DataConfig(mixture=tuple(sources), sequence_length=16, streams=STREAMS, workers=workers)
    each = BATCH // processes
    return [
        Loader(
            open_mixture(config),
            tokenizer,
            config,
            seed=7,
            batch_size_at=lambda step: BATCH,
            rows_of=lambda size, number=number: range(number * each, (number + 1) * each),
        )
        for number in range(processes)
    ]


def read(sources, tokenizer, workers: int, processes: int):
    """(10,000 rows of tokens, what the streams say at the end)."""
    shares = []
    for loader in loaders(sources, tokenizer, workers, processes):
        loader.start()
        try:
            shares.append([next(loader) for _ in range(ROWS // BATCH)])
        finally:
            loader.close()
    rows = np.concatenate([part[0]["tokens"] for parts in zip(*shares, strict=True) for part in parts])
    return rows, merge_positions([share[-1][1] for share in shares]).streams


@pytest.mark.slow
@pytest.mark.parametrize("others", [[(2, 1), (0, 2)], [(4, 1), (2, 2)]], ids=["some", "more"])
def test_each_of_five_formats_has_its_share_whoever_reads(sources, small_run, others):
    tokenizer = load_tokenizer(small_run.tokenizer)
    rows, streams = read(sources, tokenizer, workers=0, processes=1)
    assert len(rows) == ROWS
    letters = [{*tokenizer.decode(row.tolist())} & {*LETTERS} for row in rows]
    assert all(len(found) == 1 for found in letters)
    found = Counter(letter for (letter,) in letters)
    told = progress(streams, open_mixture(DataConfig(mixture=tuple(sources))))
    for letter, (source, weight) in zip(LETTERS, sources, strict=True):
        expected = weight / sum(WEIGHTS) * ROWS
        assert abs(found[letter] - expected) <= 0.01 * expected
        assert told[source].rows == found[letter] and told[source].epochs > 1
    for workers, processes in others:
        found_rows, said = read(sources, tokenizer, workers, processes)
        assert hashlib.sha256(found_rows.tobytes()).digest() == hashlib.sha256(rows.tobytes()).digest(), (
            workers,
            processes,
        )
        assert said == streams


def command(small_run, sources, run_dir: Path, **settings: object) -> list[object]:
    given = {"data.source": "pydoc", "data.mixture": json.dumps(sources), "run_dir": run_dir} | {
        name.replace("__", "."): value for name, value in settings.items()
    }
    return ["pretrain", *small_run.arguments, *(part for name, value in given.items() for part in (f"--{name}", value))]


@pytest.mark.slow
def test_a_run_on_five_formats_that_is_killed_goes_on_bit_for_bit(sources, small_run, tmp_path):
    expected = tmp_path / "expected"
    result = command_runs.run(*command(small_run, sources, expected), folder=tmp_path)
    assert result.code == 0, result
    run_dir, output = tmp_path / "run", tmp_path / "printed"
    for count, workers in ((5, 0), (8, 2)):
        with command_runs.started(*command(small_run, sources, run_dir, data__workers=workers), output=output) as run:
            assert wait_for_steps(run_dir, output, run, count=count)
            run.kill()
            assert command_runs.ended(run, output).code < 0
    result = command_runs.run(*command(small_run, sources, run_dir), folder=tmp_path)
    assert result.code == 0 and "resuming from step" in result.output, result
    assert command_runs.metrics(run_dir) == command_runs.metrics(expected)
    assert command_runs.checkpoint(run_dir, 30) == command_runs.checkpoint(expected, 30)
    epochs = command_runs.metrics(run_dir)[-1]["epochs"]
    assert epochs.keys() == {source for source, _ in sources} and all(epochs.values())


@pytest.mark.slow
def test_two_processes_train_on_the_rows_of_one(sources, small_run, tmp_path):
    short = {"training__steps": 6, "training__evaluate_every": 6}
    assert command_runs.call(*command(small_run, sources, tmp_path / "one", **short)) == 0
    for ended in command_runs.run_two(*command(small_run, sources, tmp_path / "two", **short), folder=tmp_path):
        assert ended.code == 0, ended
    one, two = (command_runs.metrics(tmp_path / name) for name in ("one", "two"))
    assert [record["batch_hash"] for record in one] == [record["batch_hash"] for record in two]
    assert one[-1]["epochs"] == two[-1]["epochs"]
