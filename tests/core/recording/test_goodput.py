"""Every second of a run is counted once, under its cause, over all of its lives."""

import time

import jax
import pytest

from llama_jax.core.recording.goodput import Goodput

SAVED = {"step": 3, "time": 1000.0, "wall_seconds": {"starting": 10.0, "productive": 30.0, "saving": 1.0}}
LAST = {"step": 5, "time": 1030.0, "wall_seconds": {"starting": 10.0, "productive": 50.0, "saving": 2.0}}


def test_what_was_lost_and_how_long_nothing_ran_is_known_from_the_records_of_the_lives_before() -> None:
    now = time.time()
    records = [SAVED, LAST | {"time": now - 70.0}]
    goodput = Goodput(records, opened=now - 60.0)
    goodput.go_on_from(3, records)
    found = goodput.record()
    seconds = found["wall_seconds"]
    assert (seconds["productive"], seconds["replayed"], seconds["saving"]) == (30.0, 20.0, 2.0)
    assert seconds["down"] == pytest.approx(10.0, abs=0.1) and seconds["starting"] == pytest.approx(70.0, abs=1.0)
    assert found["goodput"] == pytest.approx(30.0 / sum(seconds.values()), rel=1e-3)
    assert found["time"] == pytest.approx(now, abs=1.0)
    assert goodput.summary() == "goodput: 22.7% of 3 min went into steps that are part of the run, starting 53.0%, " + (
        "replayed 15.2%, down 7.6%, saving 1.5%"
    )


def test_a_run_that_begins_anew_has_lost_all_that_it_made() -> None:
    goodput = Goodput([SAVED, LAST], opened=1030.0)
    goodput.go_on_from(0, [SAVED, LAST])
    assert goodput.record()["wall_seconds"]["replayed"] == 50.0


def test_each_second_is_counted_once() -> None:
    began, goodput = time.monotonic(), Goodput([], opened=time.time())
    time.sleep(0.02)
    with goodput.training():
        time.sleep(0.2)
        # As JAX says it: what is traced within a trace before the trace itself.
        for event, seconds in (("jaxpr_trace", 0.03), ("jaxpr_trace", 0.1), ("backend_compile", 0.05)):
            jax.monitoring.record_event_duration_secs(f"/jax/core/compile/{event}_duration", seconds)
            time.sleep(0.06)
        with goodput.spending("evaluation"):
            time.sleep(0.05)
        goodput.spent("data_wait", 0.01)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 9.0)
    seconds = goodput.record()["wall_seconds"]
    assert sum(seconds.values()) == pytest.approx(time.monotonic() - began, abs=0.01)
    assert seconds["compile"] == pytest.approx(0.15) and seconds["data_wait"] == 0.01
    assert seconds["evaluation"] == pytest.approx(0.05, abs=0.03) and seconds["starting"] == pytest.approx(
        0.02, abs=0.03
    )
