import itertools
import json
import queue
import threading
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import (
    Loader,
    streams_of_batch,
    text_bytes,
    validation_batches,
    zlib_bits_per_byte,
)
from llama_jax.data.rows.mixture import Mixture, Source
from llama_jax.data.rows.packing import Epochs, PackedRows
from llama_jax.data.rows.positions import RowsPosition, merge_positions
from llama_jax.data.sources.documents import TextDocuments
from llama_jax.data.sources.opening import open_source

CONFIG = DataConfig(sequence_length=8, prefetch_batches=1)
TEXTS = [f"{number}." + "abcdefgh"[: number % 9] for number in range(50)]


def loader(
    tokenizer, batch_size: int | Callable[[int], int] = 8, share=(0, 1), texts=TEXTS, config=CONFIG, seed=0
) -> Loader:
    """A loader for the part `share = (number, of how many)` of the rows, in a batch size or sizes by step."""
    sizes = batch_size if callable(batch_size) else lambda _: batch_size
    number, parts = share
    return Loader(
        Mixture([Source("documents", TextDocuments(texts))]),
        tokenizer,
        config,
        seed,
        batch_size_at=sizes,
        rows_of=lambda size: range(number * size // parts, (number + 1) * size // parts),
    )


def taken(source: Loader, count: int, state=None):
    """(tokens of each batch, states as JSON text) of the next batches."""
    batches = list(itertools.islice(source.start(None if state is None else RowsPosition.from_json(state)), count))
    source.close()
    return [rows["tokens"] for rows, _ in batches], [json.dumps(position.to_json()) for _, position in batches]


def merged(records) -> dict:
    """The JSON of the position merged from those that processes recorded as JSON."""
    return merge_positions([RowsPosition.from_json(record) for record in records]).to_json()


def ramp(step: int) -> int:
    return 8 if step < 3 else 16 if step < 6 else 64 if step < 7 else 128


def test_streams_supply_rows_in_turn():
    assert streams_of_batch(0, 4, 8).tolist() == [0, 1, 2, 3]
    assert streams_of_batch(4, 4, 8).tolist() == [4, 5, 6, 7]
    assert streams_of_batch(12, 8, 8).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert streams_of_batch(4, 8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("batch_size", "streams"), [(6, 64), (96, 64), (0, 64)])
def test_a_batch_that_streams_do_not_fit_is_refused(byte_tokenizer, batch_size, streams):
    message = f"data.streams: {streams} neither divides training.batch_size {batch_size}"
    with pytest.raises(UserError, match=message):
        streams_of_batch(0, batch_size, streams)
    with pytest.raises(UserError, match=message):
        loader(byte_tokenizer, batch_size)


def test_a_row_is_the_next_of_its_stream(byte_tokenizer):
    batches, _ = taken(loader(byte_tokenizer, 32), 4)  # rows 64..127 are the second of streams 0..63
    for batch, row, stream in ((2, 0, 0), (2, 5, 5), (3, 31, 63)):
        rows = PackedRows(TextDocuments(TEXTS), byte_tokenizer, 8, Epochs(len(TEXTS), 0), (stream, 64))
        _, second = itertools.islice(rows, 2)
        np.testing.assert_array_equal(batches[batch][row], second["tokens"])


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 10), (128, 2), (ramp, 8)])
def test_two_processes_supply_the_rows_of_one(byte_tokenizer, batch_size, steps):
    whole, states = taken(loader(byte_tokenizer, batch_size), steps)
    halves = [taken(loader(byte_tokenizer, batch_size, share=(number, 2)), steps) for number in range(2)]
    for step in range(steps):
        np.testing.assert_array_equal(np.concatenate([half[0][step] for half in halves]), whole[step])
        together = merged([json.loads(half[1][step]) for half in halves])
        if not callable(batch_size):
            assert together == json.loads(states[step])


def test_rows_come_in_the_order_asked_for_and_may_be_shared(byte_tokenizer):
    whole, _ = taken(loader(byte_tokenizer, 128), 3)
    mixture = Mixture([Source("documents", TextDocuments(TEXTS))])
    picked = Loader(mixture, byte_tokenizer, CONFIG, 0, batch_size_at=lambda step: 128, rows_of=lambda size: [77, 1, 0])
    some, _ = taken(picked, 3)
    for step in range(3):
        np.testing.assert_array_equal(some[step], whole[step][[77, 1, 0]])


def test_a_process_reads_the_streams_of_its_rows_only(byte_tokenizer):
    _, states = taken(loader(byte_tokenizer, 128, share=(1, 2)), 1)
    assert sorted(map(int, json.loads(states[0])["streams"])) == list(range(32, 64))


@pytest.mark.parametrize(
    ("batch_size", "steps"), [(8, range(1, 12)), pytest.param(128, [1, 3], marks=pytest.mark.slow)]
)
def test_a_run_resumes_at_any_batch(byte_tokenizer, batch_size, steps):
    # An epoch is about 400 tokens, 50 rows of 8: it ends within the first batches of 8 and several times in one of 128.
    batches, states = taken(loader(byte_tokenizer, batch_size), max(steps) + 2)
    for step in steps:
        again, after = taken(loader(byte_tokenizer, batch_size), 2, json.loads(states[step - 1]))
        np.testing.assert_array_equal(again, batches[step : step + 2])
        assert after == states[step : step + 2]


@pytest.mark.parametrize(
    ("batch_size", "counts"),
    [(8, (4, 3, 4)), pytest.param(128, (1, 1, 1), marks=pytest.mark.slow), (ramp, (2, 3, 3))],
)
def test_a_run_goes_on_with_another_number_of_processes(byte_tokenizer, batch_size, counts):
    expected, _ = taken(loader(byte_tokenizer, batch_size), sum(counts))
    got, state = [], None
    for parts, count in zip((2, 1, 4), counts, strict=True):
        shares = [taken(loader(byte_tokenizer, batch_size, share=(n, parts)), count, state) for n in range(parts)]
        got += [np.concatenate(rows) for rows in zip(*(share[0] for share in shares), strict=True)]
        state = merged([json.loads(share[1][-1]) for share in shares])
    for rows, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(rows, want)


def test_a_stream_without_record_is_read_from_its_beginning(byte_tokenizer):
    batches, states = taken(loader(byte_tokenizer, 64), 3)
    state = json.loads(states[1])
    del state["streams"]["17"]
    again, _ = taken(loader(byte_tokenizer, 64), 1, state)
    np.testing.assert_array_equal(again, batches[2:])


def test_a_position_is_a_snapshot(byte_tokenizer):
    source = loader(byte_tokenizer, 8).start()
    _, state = next(source)
    before = json.dumps(state.to_json())
    for _ in range(12):
        next(source)
    source.close()
    assert json.dumps(state.to_json()) == before


def test_a_position_takes_few_bytes_a_stream(byte_tokenizer):
    _, states = taken(loader(byte_tokenizer, 64), 3)
    assert len(states[-1]) < 80 * 64


def test_a_position_ahead_of_its_step_is_refused(byte_tokenizer):
    _, states = taken(loader(byte_tokenizer, 64), 2)
    state = json.loads(states[-1]) | {"row": 64, "step": 1}
    with pytest.raises(ValueError, match="stream 0 has given 2 rows where 1 belong"):
        taken(loader(byte_tokenizer, 64), 1, state)


def test_positions_that_contradict_each_other_are_not_merged(byte_tokenizer):
    _, states = taken(loader(byte_tokenizer, 8), 2)
    first, second = map(json.loads, states)
    with pytest.raises(ValueError, match="different batches"):
        merged([first, second])
    other = json.loads(states[1])
    other["streams"]["3"]["sources"][0][0] += 1
    with pytest.raises(ValueError, match="read stream 3 differently"):
        merged([second, other])


def test_the_record_that_is_furthest_on_is_merged():
    def state(rows: int):
        return {"step": 9, "row": 72, "streams": {"4": {"rows": rows, "sources": [[rows, 0, 0, 0]]}}}

    assert merged([state(1), state(3), state(2)]) == state(3)


def test_close_frees_who_waits_for_a_batch(byte_tokenizer):
    never = threading.Event()

    def batch_size_at(step: int) -> int:
        if step == 1:
            never.wait(60)
        return 8

    source = loader(byte_tokenizer, batch_size_at).start()
    next(source)
    ended: list[int] = []
    waiting = threading.Thread(target=lambda: ended.append(len(list(source))))
    waiting.start()
    time.sleep(0.1)
    source.close()
    waiting.join(30)
    never.set()
    assert ended == [0]
    for thread in loader_threads():
        thread.join(60)


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_asked_for(tmp_path, byte_tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 40 + '{"text": 5}\n')
    mixture = Mixture([Source("documents", open_source(str(tmp_path / "a.jsonl")))])
    config = DataConfig(sequence_length=8, bad_records="fail")
    source = Loader(mixture, byte_tokenizer, config, 0, batch_size_at=lambda step: 64).start()
    with pytest.raises(UserError, match=r"a\.jsonl:41: .*'text'.* \(data.bad_records is fail\)"):
        for _ in range(10):
            next(source)
    with pytest.raises(UserError):
        next(source)
    source.close()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-loader"]


def test_batches_are_prepared_ahead_as_many_as_configured(byte_tokenizer):
    begun: queue.Queue[int] = queue.Queue()

    def batch_size_at(step: int) -> int:
        begun.put(step)
        return 8

    source = loader(byte_tokenizer, batch_size_at, config=DataConfig(sequence_length=8, prefetch_batches=3))
    assert begun.get(timeout=60) == 0  # the loader looks whether it fits the streams
    source.start()
    for step in range(3):
        assert begun.get(timeout=60) == step
    for step in range(3, 50):
        assert begun.empty()
        next(source)
        assert begun.get(timeout=60) == step
    source.close()


@pytest.mark.parametrize("batches", [0, 1])
def test_close_stops_the_thread_also_when_it_is_ahead(byte_tokenizer, batches):
    source = loader(byte_tokenizer, 8).start()
    for _ in range(batches):
        next(source)
    (thread,) = loader_threads()
    source.close()
    thread.join(60)
    assert not loader_threads()
    with pytest.raises(RuntimeError, match="between start"):
        next(source)


def test_the_fingerprint_follows_all_that_decides_the_rows(byte_tokenizer, tokenizer):
    def fingerprint(**changes) -> str:
        return loader(changes.pop("tokenizer", byte_tokenizer), **changes).fingerprint

    same = fingerprint()
    others = [
        fingerprint(tokenizer=tokenizer),
        fingerprint(texts=TEXTS[:-1]),
        fingerprint(seed=1),
        fingerprint(config=DataConfig(sequence_length=16)),
        fingerprint(config=DataConfig(sequence_length=8, streams=32)),
        fingerprint(config=DataConfig(sequence_length=8, validation_fraction=0.1)),
    ]
    assert len({same, *others}) == 7
    assert fingerprint(batch_size=64, share=(1, 2)) == same
    assert fingerprint(config=DataConfig(sequence_length=8, prefetch_batches=9)) == same


def test_the_last_validation_batch_is_filled_with_empty_rows(byte_tokenizer):
    # Each text has 3 + 1 pairs, so five of them fill two and a half rows of 8.
    batches = list(validation_batches(TextDocuments(["abc"[:2]] * 5), byte_tokenizer, CONFIG, 2))
    assert [batch["tokens"].shape for batch in batches] == [(2, 8), (2, 8)]
    assert [batch["loss_weights"].sum(axis=1).tolist() for batch in batches] == [[8, 8], [4, 0]]
    assert batches[-1]["segment_ids"][1].tolist() == [0] * 8
    assert {array.dtype for name, array in batches[-1].items() if name != "loss_weights"} == {np.dtype(np.int32)}


def test_bytes_and_compression_are_those_of_the_texts_one_after_another():
    documents = TextDocuments(["é" * 100, "abc" * 50])
    assert text_bytes(documents) == 350
    assert zlib_bits_per_byte(documents) == 8 * len(zlib.compress(("é" * 100 + "abc" * 50).encode(), 9)) / 350
