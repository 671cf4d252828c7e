"""Rows that other processes read are the rows that a thread reads."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from damaged_documents import ScriptedDocuments

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, Source
from llama_jax.data.rows.positions import RowsPosition
from llama_jax.data.sources.documents import TextDocuments

TEXTS = [f"{number}." + "abcdefgh"[: number % 9] for number in range(50)]


def loader(tokenizer, workers: int, texts: list[str] | None = None, say=print, batch_size: int = 8, **fields) -> Loader:
    first = TextDocuments(TEXTS) if texts is None else ScriptedDocuments(texts)
    mixture = Mixture([Source("first", first, 3.0), Source("second", TextDocuments(["xyz"] * 7))])
    config = DataConfig(sequence_length=8, streams=16, workers=workers, **fields)
    return Loader(mixture, tokenizer, config, 0, batch_size_at=lambda step: batch_size, say=say)


def taken(source: Loader, count: int, state: RowsPosition | None = None) -> tuple[list[np.ndarray], list[str]]:
    """(tokens of each batch, states as JSON text) of the next batches."""
    try:
        batches = list(itertools.islice(source.start(state), count))
    finally:
        source.close()
    return [rows["tokens"] for rows, _ in batches], [
        json.dumps(state.to_json(), sort_keys=True) for _, state in batches
    ]


def pids(source: Loader) -> list[int]:
    return [worker._process.pid for worker in source._readers._workers]  # pyright: ignore


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 120
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)


def test_rows_and_states_are_the_same_with_any_number_of_workers_also_after_a_change(byte_tokenizer):
    texts = [text if number % 9 else "bad:not_json" for number, text in enumerate(TEXTS)]

    def reader(workers: int, batch_size: int = 8) -> Loader:
        return loader(byte_tokenizer, workers, texts, batch_size=batch_size, max_bad_fraction=1.0)

    expected, states = taken(reader(0), 18)
    rows, state = [], None
    for workers, count in ((2, 5), (0, 4), (4, 6), (2, 3)):
        some, after = taken(reader(workers), count, state)
        rows += some
        assert after == states[len(rows) - count : len(rows)]
        state = RowsPosition.from_json(json.loads(after[-1]))
    np.testing.assert_array_equal(rows, expected)
    large = taken(reader(0, batch_size=32), 3)
    for found, wanted in zip(taken(reader(4, batch_size=32), 3), large, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_worker_that_dies_is_named(byte_tokenizer):
    source = loader(byte_tokenizer, 2, prefetch_batches=1).start()
    next(source)
    os.kill(pids(source)[1], signal.SIGKILL)
    with pytest.raises(CannotGoOnError, match="reader process 1 of 2 was killed by signal 9; run the same command"):
        for _ in range(10):
            next(source)
    source.close()


def test_a_worker_that_dies_while_it_reads_is_named(byte_tokenizer):
    texts = ["kill" if number == 20 else text for number, text in enumerate(TEXTS)]
    with pytest.raises(CannotGoOnError, match=r"reader process \d of 2 was killed by signal 9"):
        taken(loader(byte_tokenizer, 2, texts), 40)


def test_errors_of_a_worker_come_back_as_one_line(byte_tokenizer):
    gone = ["gone" if number == 20 else text for number, text in enumerate(TEXTS)]
    with pytest.raises(UserError, match=r"^a\.jsonl: is gone at 20$"):
        taken(loader(byte_tokenizer, 2, gone), 40)
    fails = ["fail" if number == 20 else text for number, text in enumerate(TEXTS)]
    with pytest.raises(CannotGoOnError, match=r"reader process \d of 2: ZeroDivisionError: two lines$"):
        taken(loader(byte_tokenizer, 2, fails), 40)
    bad = ["bad:empty" if number == 20 else text for number, text in enumerate(TEXTS)]
    with pytest.raises(UserError, match=r"^a.jsonl:21: is empty \(data.bad_records is fail\)$"):
        taken(loader(byte_tokenizer, 2, bad, bad_records="fail"), 40)


def test_the_first_bad_records_are_named_whoever_reads_them(byte_tokenizer):
    texts = [text if number % 5 else "bad:not_json" for number, text in enumerate(TEXTS)]
    for workers in (0, 2):
        said: list[str] = []
        taken(loader(byte_tokenizer, workers, texts, say=said.append, max_bad_fraction=1.0), 40)
        assert len(said) == 5
        assert all(line.startswith("bad record skipped: a.jsonl:") and "is not_json" in line for line in said)
        assert said[-1].endswith("further ones are only counted (dropped_records in the metrics)")


def test_workers_do_not_heed_ctrl_c_and_go_when_the_loader_is_closed(byte_tokenizer):
    source = loader(byte_tokenizer, 2, prefetch_batches=1).start()
    next(source)
    processes = pids(source)
    for process in processes:
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGTERM)
    for _ in range(5):
        next(source)
    assert all(map(is_running, processes))
    source.close()
    wait_until_gone(processes)


PARENT = """
import sys, time
from llama_jax.data.config import DataConfig
from llama_jax.data.sources.documents import TextDocuments
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, Source
from llama_jax.data.tokenizers import load_tokenizer

config = DataConfig(sequence_length=8, workers=2)
tokenizer = load_tokenizer(sys.argv[1])
mixture = Mixture([Source("documents", TextDocuments(["a", "b"]))])
source = Loader(mixture, tokenizer, config, 0, batch_size_at=lambda step: 64).start()
if sys.argv[2] == "running":
    next(source)
print(*(worker._process.pid for worker in source._readers._workers), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["running", "starting"])
def test_no_worker_outlives_a_parent_that_is_killed(byte_tokenizer, tmp_path, moment):
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(byte_tokenizer.to_bytes())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(file), moment], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    processes = [*map(int, parent.stdout.readline().split())]
    assert len(processes) == 2 and all(map(is_running, processes))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_gone(processes)
