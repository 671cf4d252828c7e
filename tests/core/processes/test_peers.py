"""Who holds up a job, as far as notices tell, and who has not come to it."""

import socket
import threading

import pytest

from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.processes import patience
from llama_jax.core.processes.joining import await_all
from llama_jax.core.processes.patience import Unchanged
from llama_jax.core.processes.peers import Fault, Notice, Peers


def jobs(count: int) -> list[Peers]:
    """The processes of a job, as each sees them, with a board that they share."""
    board: dict[int, str] = {}

    def of(rank: int) -> Peers:
        return Peers(rank, count, lambda text: board.update({rank: text}), lambda: dict(board))

    return [of(rank) for rank in range(count)]


def at(marks: int, *, waits: bool = False) -> Notice:
    return Notice(marks, f"step {marks}", 0, waits)


ALL_ALIKE = "all are at the same place; look at the devices, and at what connects them"
FAULTS = {
    "one is behind": ([at(9), at(8), at(9)], Fault([1], "is behind")),
    "two are behind": ([at(7), at(9), at(7)], Fault([0, 2], "is behind")),
    "one computes what the others wait for": (
        [at(9, waits=True), at(9), at(9, waits=True)],
        Fault([1], "is where the others are, but does not wait"),
    ),
    "one has not begun": ([at(0), None, at(0)], Fault([1], "takes no part")),
    "all wait": ([at(9, waits=True)] * 3, Fault([], ALL_ALIKE)),
    "none waits": ([at(9)] * 3, Fault([], ALL_ALIKE)),
}


@pytest.mark.parametrize("case", FAULTS)
def test_who_holds_up_a_job_is_named(case) -> None:
    notices, expected = FAULTS[case]
    job = jobs(3)
    for peers, notice in zip(job, notices, strict=True):
        if notice is not None:
            peers.exchange(notice)
    job[2].exchange(notices[2])
    assert job[2].fault([]) == expected
    assert job[2].fault([0]) == Fault([0], "is silent")


def test_one_that_has_left_is_no_fault() -> None:
    first, second = jobs(2)
    first.exchange(at(3))
    first.exchange(None)
    second.exchange(at(3))
    assert second.fault([]) == Fault([], ALL_ALIKE)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, in a list of one."""
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    return now


def test_a_process_of_which_nothing_new_is_heard_is_silent(clock) -> None:
    first, second = jobs(2)
    first.exchange(at(1))
    for beat in range(8):
        clock[0] += 1
        second.exchange(Notice(1, "step 1", beat))
        assert second.silent(5) == ([0] if beat > 4 else [])


def test_of_a_board_that_does_not_answer_process_0_is_to_blame(clock) -> None:
    first, second = jobs(2)
    first.exchange(at(1))
    second.exchange(at(1))
    for peers, expected in ((first, []), (second, [0])):
        assert peers.silent(5) == []
        clock[0] += 4
        assert peers.silent(5) == []
        clock[0] += 4
        assert peers.silent(5) == expected


def test_time_in_which_a_process_was_stopped_does_not_count(clock) -> None:
    unchanged = Unchanged()
    assert [unchanged.look("a"), unchanged.look("a")] == [0, 0]
    clock[0] += 1000
    assert unchanged.look("a") == 5
    clock[0] += 2
    assert unchanged.look("a") == 7
    assert unchanged.look("b") == 0


def came(ranks: list[int], count: int, seconds: int) -> dict[int, str]:
    """What is said to each process of a job to which only some come."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said: dict[int, str] = {}

    def come(rank: int) -> None:
        try:
            await_all(address, rank, count, seconds)
            said[rank] = "all have come"
        except CannotGoOnError as error:
            said[rank] = str(error).replace(address, "HOST")

    threads = [threading.Thread(target=come, args=[rank]) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_those_that_have_not_come_are_named_to_those_that_have() -> None:
    assert came([1, 0, 2], 3, 60) == dict.fromkeys(range(3), "all have come")
    within = "HOST within 1 s (distributed.timeout_seconds)"
    assert came([0, 2], 5, 1) == dict.fromkeys([0, 2], f"processes 1, 3, 4 did not come to {within}")
    assert came([1], 2, 1) == {1: f"process 0 did not come to {within}"}
