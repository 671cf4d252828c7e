"""Restoring, recording and saving of a run, with a toy task in this process."""

import os
import signal
import time

import pytest
from etils import epath
from sweeps import some
from toy_runs import ROWS, STEPS, Counted, KilledError, Toy, assert_same, checkpoint, damage, killed_before, steps

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import best_step
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.processes import watchdog
from llama_jax.core.recording.metrics import read_metrics
from llama_jax.training.config import TrainingConfig


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("uninterrupted"))
    assert toy.train()
    return toy


def test_a_run_records_each_step_once_and_saves_when_it_is_told_to(uninterrupted):
    records = uninterrupted.metrics()
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["step"] for record in records if "validation_loss" in record] == [2, 4, 6, 8]
    assert records[3]["epochs"] == {"counted": 0.4}
    assert [record["tokens"] for record in records] == [ROWS * 8 * step for step in range(1, STEPS + 1)]
    assert steps(uninterrupted) == [3, 6, 8]
    assert uninterrupted.before_training == [0]
    assert checkpoint(uninterrupted, 6)[1] == {"position-00000-of-00001.json": b'{"step": 6, "row": 48}'}
    assert (uninterrupted.path / "curves.png").exists()


@pytest.mark.parametrize("lives", some([[2], [4, 7], [3, 4, 5], [8]], [[4, 7], [8]]), ids=str)
def test_a_run_that_is_killed_is_the_uninterrupted_run(uninterrupted, tmp_path, lives):
    toy, lost = Toy(tmp_path), 0.0
    for step in lives:
        data = killed_before(step)
        with pytest.raises(KilledError):
            toy.train(data)
        assert data.closed
        made = [
            0.0,
            *(each["wall_seconds"].get("productive", 0.0) for each in read_metrics(tmp_path / "metrics.jsonl")),
        ]
        lost += made[-1] - made[3 * ((step - 1) // 3)]
    assert toy.train()
    assert_same(toy, uninterrupted)
    spent = read_metrics(tmp_path / "metrics.jsonl")[-1]["wall_seconds"]
    assert spent.get("replayed", 0.0) == pytest.approx(lost, abs=0.01)
    assert spent.get("down", 0.0) > 0 or lives == [2]  # which recorded nothing
    assert toy.before_training == [0, *(3 * ((step - 1) // 3) for step in lives)]


@pytest.mark.slow
def test_steps_have_their_limit_once_their_batch_size_is_compiled(tmp_path):
    seen = []
    training = TrainingConfig(
        steps=STEPS, batch_size=ROWS, batch_ramp=((0, ROWS), (4, ROWS)), warmup_steps=2, evaluate_every=2
    )
    data = Counted(before_batch=lambda step: seen.append(watchdog._watching._place[1:]))
    assert Toy(tmp_path, training).train(data)
    assert seen == [(f"step {step}", step in (3, 4, 7, 8)) for step in range(1, STEPS + 1)]
    assert watchdog._watching is None


def test_the_same_command_after_the_end_changes_nothing(uninterrupted, tmp_path, capsys):
    toy = Toy(tmp_path)
    assert toy.train()
    before = (tmp_path / "metrics.jsonl").read_text()
    assert not toy.train()
    assert f"{tmp_path} is already at step 8; ask for more with --training.steps\n" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert_same(toy, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path, capsys):
    toy = Toy(tmp_path)
    with pytest.raises(KilledError):
        toy.train(killed_before(8))
    damage(toy, 6)
    assert toy.train()
    assert "resuming from step 3\n" in capsys.readouterr().out
    assert_same(toy, uninterrupted)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path):
    toy = Toy(tmp_path)
    with pytest.raises(KilledError):
        toy.train(killed_before(5))
    damage(toy, 3)
    with pytest.raises(CheckpointDamagedError, match=r"^no checkpoint in .* verifies"):
        toy.train()
    assert len(toy.metrics()) == 4


def test_a_run_resumes_from_the_step_that_is_asked_for(uninterrupted, tmp_path, capsys):
    toy = Toy(tmp_path)
    with pytest.raises(KilledError):
        toy.train(killed_before(8))
    assert toy.train(resume=3)
    said = capsys.readouterr().out
    assert "resuming from step 3\ncompiling…" in said
    assert "\ngoing on from step 3\n--resume 3: checkpoint step 6 dropped\n" in said
    assert_same(toy, uninterrupted)


def test_other_data_and_fewer_steps_are_refused(tmp_path):
    toy = Toy(tmp_path)
    with pytest.raises(KilledError):
        toy.train(killed_before(5))
    with pytest.raises(UserError, match=f"--run_dir {tmp_path}: the documents or the tokenizer are not those the run"):
        toy.train(Counted(fingerprint="other"))
    with pytest.raises(UserError, match=f"training.steps: 2, but {tmp_path} is already at step 3"):
        toy.train(training=TrainingConfig(steps=2, batch_size=ROWS, warmup_steps=2, evaluate_every=2, schedule_steps=8))
    assert steps(toy) == [3]


@pytest.mark.slow
def test_more_steps_go_on_with_the_schedule_that_was_begun(tmp_path, capsys):
    toy = Toy(tmp_path)
    assert toy.train()
    assert toy.train(training=TrainingConfig(steps=10, batch_size=ROWS, warmup_steps=2, evaluate_every=2))
    assert "the learning-rate schedule still ends at step 8, as the run began\n" in capsys.readouterr().out
    rates = [record["learning_rate"] for record in toy.metrics()]
    assert len(rates) == 10 and rates[8] == rates[9] < rates[7]


def test_the_best_step_is_saved_and_kept(tmp_path, capsys):
    losses = {2: 0.9, 4: 0.1, 6: 0.5, 8: 0.4}
    toy = Toy(tmp_path, checkpoints=CheckpointConfig(every=3, keep_last=1, keep_best=True), losses=losses)
    with pytest.raises(KilledError):
        toy.train(killed_before(6))
    assert toy.train()
    assert best_step(epath.Path(tmp_path / "checkpoints")) == 4
    assert steps(toy) == [4, 6, 8]  # two that verify are newer than what is deleted
    assert "lowest validation loss: 0.1000 at step 4 (--step best uses that checkpoint)\n" in capsys.readouterr().out


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT], [signal.SIGINT]))
def test_a_signal_saves_the_step_it_interrupts_and_leaves(uninterrupted, tmp_path, number):
    toy = Toy(tmp_path)

    def interrupt(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    message = r"^interrupted: saved step \d of 8; run the same command to resume$"
    with pytest.raises(SavedAfterSignal, match=message):
        toy.train(Counted(before_batch=interrupt))
    assert signal.getsignal(number) is handler
    last = toy.metrics()[-1]["step"]
    assert 5 <= last < STEPS and steps(toy)[-1] == last
    assert toy.train()
    assert [record["loss"] for record in toy.metrics()] == [record["loss"] for record in uninterrupted.metrics()]
    assert checkpoint(toy, STEPS) == checkpoint(uninterrupted, STEPS)


def test_a_step_waits_for_data_no_longer_than_it_takes(tmp_path) -> None:
    slow = Counted(before_batch=lambda step: time.sleep(0.1 if step % 2 == 0 else 0))
    assert Toy(tmp_path).train(slow)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[-1]["wall_seconds"]["data_wait"] == pytest.approx(
        sum(record["data_wait_seconds"] for record in records), abs=0.01
    )
    for record in records:
        assert 0 <= record["data_wait_seconds"] <= record["step_seconds"]
    assert sum(record["data_wait_seconds"] for record in records) >= 0.4
