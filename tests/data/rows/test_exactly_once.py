"""Every token is used exactly once an epoch, whenever a run is killed and with however many processes it goes on."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from damaged_documents import IdDocuments
from ledgers import ledger_at

from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, Source
from llama_jax.data.rows.packing import Epochs
from llama_jax.data.rows.positions import RowsPosition, merge_positions
from llama_jax.data.tokenizers import Llama2cTokenizer

STREAMS, LENGTH, BATCH, SEED = 8, 16, 16, 5


def unique_documents(count: int, first_id: int, chance: random.Random) -> IdDocuments:
    """Documents in which no id occurs twice, so that an id tells which token it is."""
    ids = itertools.count(first_id)
    return IdDocuments([[next(ids) for _ in range(chance.randint(2, 40))] for _ in range(count)])


@pytest.fixture
def tokenizer(write_llama2c):
    return Llama2cTokenizer(write_llama2c([(b" ", 0.0)] + [(f"<{number}>".encode(), 0.0) for number in range(3000)]))


@pytest.fixture
def mixture() -> Mixture:
    chance = random.Random(1)
    documents = [unique_documents(30, 3, chance), unique_documents(11, 1500, chance)]
    return Mixture([Source("large", documents[0], 2.0), Source("small", documents[1], 1.0)])


def run(mixture, tokenizer, state: RowsPosition | None, processes: int, batches: int, workers: int):
    """What a run gives until it is killed: (its batches, the state after each, merged from all processes)."""
    shares = []
    for number in range(processes):
        config = DataConfig(sequence_length=LENGTH, streams=STREAMS, workers=workers)
        share = range(number * BATCH // processes, (number + 1) * BATCH // processes)
        loader = Loader(
            mixture, tokenizer, config, SEED, batch_size_at=lambda step: BATCH, rows_of=lambda size, share=share: share
        )
        shares.append(list(itertools.islice(loader.start(state), batches)))
        loader.close()
    tokens = [np.concatenate([rows["tokens"] for rows, _ in parts]) for parts in zip(*shares, strict=True)]
    return tokens, [
        merge_positions([RowsPosition.from_json(json.loads(json.dumps(state.to_json()))) for _, state in parts])
        for parts in zip(*shares, strict=True)
    ]


def check_ledger(mixture: Mixture, tokenizer, state: RowsPosition, used: Counter[int]) -> list[int]:
    """The tokens used are those before the position of each stream, and the ledgers say so. Returns whole epochs."""
    expected, whole = Counter(), []
    for number, source in enumerate(mixture.sources):
        epochs = Epochs(len(source.documents), SEED, number)
        begun = []
        for stream, at in state.streams.items():
            position = at.sources[number]
            assert ledger_at(source.documents, tokenizer, epochs, (stream, STREAMS), position) == position.ledger
            begun.append(stream + position.documents * STREAMS - (STREAMS if position.offset else 0))
            for place in range(position.documents):
                ids = source.documents[epochs[stream + place * STREAMS]].tolist()
                last = position.offset if position.offset and place == position.documents - 1 else len(ids) - 1
                expected.update(ids[:last])
        whole.append(min(begun) // len(source.documents))
        every = Counter(
            token for index in range(len(source.documents)) for token in source.documents[index][:-1].tolist()
        )
        assert all(used[token] >= whole[-1] for token in every)
    assert used == expected
    return whole


def kill_and_resume(mixture, tokenizer, cycles: int, workers: tuple[int, ...], seed: int) -> None:
    chance = random.Random(seed)
    state, used, kept = None, Counter(), []
    for cycle in range(cycles):
        batches = chance.randint(1, 6)
        tokens, states = run(mixture, tokenizer, state, (1, 2, 1)[cycle % 3], batches, workers[cycle % len(workers)])
        # Killed after more batches than the last checkpoint knows of.
        saved = chance.randint(0, batches)
        kept += tokens[:saved]
        state = states[saved - 1] if saved else state
        used.update(np.concatenate(tokens[:saved]).ravel().tolist() if saved else [])
        if state is not None:
            whole = check_ledger(mixture, tokenizer, state, used)
    assert state is not None and min(whole) >= 1, whole
    uninterrupted, states = run(mixture, tokenizer, None, 1, state.step, 0)
    np.testing.assert_array_equal(kept, uninterrupted)
    assert states[-1] == state


def test_a_run_that_is_killed_uses_every_token_once_an_epoch(mixture, tokenizer):
    kill_and_resume(mixture, tokenizer, cycles=6, workers=(0,), seed=3)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_uses_every_token_once_an_epoch(mixture, tokenizer):
    kill_and_resume(mixture, tokenizer, cycles=21, workers=(0, 0, 2, 0, 4), seed=0)


def test_a_token_that_is_lost_or_used_twice_is_found_out(mixture, tokenizer):
    tokens, states = run(mixture, tokenizer, None, 1, 4, 0)
    used = Counter(np.concatenate(tokens).ravel().tolist())
    check_ledger(mixture, tokenizer, states[-1], used)
    with pytest.raises(AssertionError):
        check_ledger(mixture, tokenizer, states[-1], used + Counter([tokens[0][0, 0].item()]))
    position, earlier = (state.streams[3].sources[0] for state in (states[-1], states[1]))
    position.documents, position.offset, position.rows = earlier.documents, earlier.offset, earlier.rows
    with pytest.raises(AssertionError):
        check_ledger(mixture, tokenizer, states[-1], used)
