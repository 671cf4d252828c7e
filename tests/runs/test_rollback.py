"""Where updates are skipped again and again a run goes back and leaves batches out, and whatever interrupts it changes
nothing of that."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeps import some
from toy_runs import LENGTH, ROWS, Counted, KilledError, Place, Toy, checkpoint, damage, steps

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.training.config import RollbackConfig, TrainingConfig

LAST = 13
TRAINING = TrainingConfig(
    steps=LAST, batch_size=ROWS, warmup_steps=2, evaluate_every=100,
    rollback=RollbackConfig(skipped_updates=2, window=4, steps_before=1, batches=5, times=2),
)  # fmt: skip


class Poisoned(Counted):
    """Some batches have a loss that is no number. The run is killed before it is given its n-th batch."""

    def __init__(self, bad: range, killed: int = 0) -> None:
        super().__init__()
        self._bad, self._killed, self._given = bad, killed, 0

    def start(self, position: Place | None = None) -> Iterator[tuple[dict[str, np.ndarray], Place]]:
        for rows, place in super().start(position):
            self._given += 1
            if self._given == self._killed:
                raise KilledError
            rows["loss_weights"] *= np.nan if place.step in self._bad else 1
            yield rows, place


def toy_of(path: Path) -> Toy:
    return Toy(path, training=TRAINING)


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory) -> Toy:
    toy = toy_of(tmp_path_factory.mktemp("gone_back"))
    assert toy.train(Poisoned(range(9, 13)))
    return toy


def test_a_run_goes_back_and_past_the_batches_at_which_updates_were_skipped(gone_back):
    """Of batches 9 and 10 the second is one too many: back to step 6, and after step 7 five batches are left out."""
    records = gone_back.metrics()
    assert [record["step"] for record in records] == list(range(1, LAST + 1))
    assert records[-1]["skipped_updates"] == 0
    assert [record.get("rollbacks", 0) for record in records] == [0] * 6 + [1] * 7
    assert [record.get("left_out_batches", 0) for record in records] == [0] * 7 + [5] * 6
    assert [record["tokens"] // (ROWS * LENGTH) for record in records] == [*range(1, 8), *range(13, 19)]
    assert checkpoint(gone_back, 9)[1] == {"position-00000-of-00001.json": b'{"step": 14, "row": 112}'}
    assert gone_back.before_training == [0, 6] and steps(gone_back) == [3, 6, 9, 12, 13]
    kept = json.loads((gone_back.path / "rollbacks.json").read_text())
    assert kept == {"back_to": None, "rollbacks": [{"after": 7, "batches": 5, "found": 10}]}
    line = (
        "step 10: 2 updates were skipped from step 9 on: going back to step 6, and leaving out 5 batches after step 7"
    )
    assert f"{line} (rollback 1 of at most 2)\n" in (gone_back.path / "log.txt").read_text()


@pytest.mark.slow
def test_without_it_the_run_goes_on_with_what_it_skipped(gone_back, tmp_path):
    toy = Toy(tmp_path, training=dataclasses.replace(TRAINING, rollback=RollbackConfig()))
    assert toy.train(Poisoned(range(9, 13)))
    assert toy.metrics()[-1]["skipped_updates"] == 4
    assert toy.metrics()[:6] == [without_rollbacks(record) for record in gone_back.metrics()[:6]]


def without_rollbacks(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("rollbacks", "left_out_batches")}


@pytest.mark.slow
@pytest.mark.parametrize("killed", some([[n] for n in range(2, 24)] + [[7, 5], [13, 4, 9]], [[13]]), ids=str)
def test_a_run_that_is_killed_around_it_is_the_same(gone_back, tmp_path, killed):
    toy = toy_of(tmp_path)
    for number in killed:
        with pytest.raises(KilledError):
            toy.train(Poisoned(range(9, 13), killed=number))
    assert toy.train(Poisoned(range(9, 13)))
    assert toy.metrics() == gone_back.metrics()
    assert checkpoint(toy, LAST) == checkpoint(gone_back, LAST)


@pytest.mark.slow
def test_a_damaged_checkpoint_to_go_back_to_gives_way_to_an_older_one(gone_back, tmp_path):
    toy = toy_of(tmp_path)

    class Damaging(Poisoned):
        def start(self, position=None):
            for rows, place in super().start(position):
                if place.step == 10 and position is None:
                    damage(toy, 6)
                yield rows, place

    assert toy.train(Damaging(range(9, 13)))
    assert toy.before_training == [0, 3]
    assert checkpoint(toy, LAST) == checkpoint(gone_back, LAST)


@pytest.mark.slow
def test_a_run_goes_back_no_more_often_than_it_may(tmp_path):
    toy = toy_of(tmp_path)
    message = r"^step 9: 2 updates were skipped from step 8 on, after 2 rollbacks \(training.rollback.times\); lower"
    with pytest.raises(CannotGoOnError, match=message):
        toy.train(Poisoned(range(9, 100)))
    with pytest.raises(CannotGoOnError, match="after 2 rollbacks"):
        toy.train(Poisoned(range(9, 100)))
    assert steps(toy) == [3, 6]


def test_what_is_left_out_holds_the_batches_of_skipped_updates():
    with pytest.raises(UserError, match=r"^training.rollback.batches: 199 must be at least 200, `window` and"):
        RollbackConfig(batches=199)
