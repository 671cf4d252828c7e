"""Reward functions are called as TRL calls them; whatever they do, it is counted and named, and the run goes on or
stops as it was told."""

import time
from pathlib import Path

import numpy as np
import pytest

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.rl.rewards.config import RewardFunctionConfig
from llama_jax.rl.rewards.functions import RewardFunction, function_rewards

PROGRAM = """
import asyncio, math, os, subprocess, sys, time
import beside

def call(mode, completions, **rest):
    return MODES[mode[0]](completions, rest)

async def later(completions, **rest):
    await asyncio.sleep(0.01)
    return [float(len(text)) for text in completions]

def told(prompts, completions, completion_ids, answer, mode):
    print("not an answer", file=sys.__stdout__, flush=True)
    os.write(1, b"nor this")
    assert sys.stdin.read() == ""
    return [len(p) + 10 * len(c) + 100 * len(i) + 1000 * a + beside.MORE
            for p, c, i, a in zip(prompts, completions, completion_ids, answer)]

def start(completions, folder, **rest):
    with open(folder[0] + "/pid", "w") as file:
        file.write(str(subprocess.Popen(["sleep", "600"]).pid))
    time.sleep(600)

def refuse(completions, rest):
    raise ValueError("of its own\\nmaking")

MODES = {
    "fine": lambda completions, rest: [1.0, 2, True],
    "raise": refuse,
    "leave": lambda completions, rest: sys.exit(3),
    "die": lambda completions, rest: os._exit(1),
    "hang": lambda completions, rest: time.sleep(60),
    "spin": lambda completions, rest: iter(int, 1),
    "few": lambda completions, rest: [1.0],
    "many": lambda completions, rest: [1.0] * 10000,
    "none": lambda completions, rest: [None, 0.5, None],
    "nan": lambda completions, rest: [1.0, math.nan, 2.0],
    "large": lambda completions, rest: [1.0, 1e30, -math.inf],
    "text": lambda completions, rest: [1.0, "2", 3.0],
    "number": lambda completions, rest: 5,
    "nothing": lambda completions, rest: None,
    "names": lambda completions, rest: {0: 1.0, 1: 1.0, 2: 1.0},
    "memory": lambda completions, rest: bytearray(2**34),
}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "beside.py").write_text("MORE = 0.5\n")
    (folder / "own.py").write_text(PROGRAM)
    return folder / "own.py"


@pytest.fixture(scope="module")
def function(file) -> RewardFunction:
    return RewardFunction(RewardFunctionConfig(f"{file}:call", timeout_seconds=1.0, failures_allowed=100))


def ask(function: RewardFunction, mode: str, count: int = 3) -> np.ndarray:
    return function({"prompts": ["p"] * count, "completions": ["c"] * count, "mode": [mode] * count})


@pytest.mark.parametrize(
    ("mode", "rewards", "kind", "count", "problem"),
    [
        ("raise", [None] * 3, "raised", 1, "ValueError: of its own making"),
        ("leave", [None] * 3, "raised", 1, "SystemExit: 3"),
        ("number", [None] * 3, "raised", 1, "gives int 5, not a list with a reward for each completion"),
        ("nothing", [None] * 3, "raised", 1, "gives None, not a list"),
        ("names", [None] * 3, "raised", 1, "gives dict {0: 1.0, 1: 1.0, 2: 1.0}, not a list"),
        ("memory", [None] * 3, "raised", 1, "MemoryError"),
        ("die", [None] * 3, "died", 1, "its process ended"),
        ("hang", [None] * 3, "too_slow", 1, "takes longer than 1 s"),
        pytest.param("spin", [None] * 3, "too_slow", 1, "takes longer than 1 s", marks=pytest.mark.slow),
        ("few", [None] * 3, "wrong_number", 1, "gives 1 rewards for 3 completions"),
        ("none", [None, 0.5, None], "not_applicable", 2, ""),
        ("nan", [1.0, None, 2.0], "no_number", 1, "gives nan for completion 1, which is no number"),
        ("text", [1.0, None, 3.0], "no_number", 1, "gives str '2' for completion 1, which is no number"),
        (
            "large",
            [1.0, None, None],
            "too_large",
            2,
            "gives 1e+30 for completion 1, beyond rewards.largest_",
        ),
    ],
)
def test_what_goes_wrong_is_counted_and_named_and_the_next_call_is_fine(
    function, mode, rewards, kind, count, problem
) -> None:
    before = function.counts.copy()
    np.testing.assert_array_equal(ask(function, mode), np.array(rewards, np.float32))
    assert function.counts - before == {kind: count}
    assert problem in function.problem and bool(problem) == bool(function.problem)
    np.testing.assert_array_equal(ask(function, "fine"), [1.0, 2.0, 1.0])
    assert function.problem == ""


def test_too_many_rewards_are_not_even_read(function) -> None:
    assert np.isnan(ask(function, "many")).all()
    assert "ended" in function.problem or "gives 10000 rewards for 3 completions" in function.problem


def test_what_a_function_has_started_ends_with_it(file, tmp_path) -> None:
    function = RewardFunction(RewardFunctionConfig(f"{file}:start", timeout_seconds=0.5, failures_allowed=1))
    function({"completions": [""], "folder": [str(tmp_path)]})
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert function.counts == {"too_slow": 1} and time.monotonic() < deadline


def test_a_run_stops_after_more_failures_in_a_row_than_may_be(file) -> None:
    function = RewardFunction(RewardFunctionConfig(f"{file}:call", failures_allowed=1))
    for mode in ("few", "fine", "few"):
        ask(function, mode)
    message = r"own.py:call: line \d+: ValueError: of its own making, the last of 2 failures in a row; a run goes on"
    with pytest.raises(CannotGoOnError, match=message):
        ask(function, "raise")
    with pytest.raises(CannotGoOnError, match=r"own.py:call: gives nan for completion 1"):
        ask(RewardFunction(RewardFunctionConfig(f"{file}:call")), "nan")


def test_functions_are_called_as_trl_calls_them(file) -> None:
    functions = [RewardFunction(RewardFunctionConfig(f"{file}:{name}")) for name in ("told", "later")]
    arguments = {
        "prompts": ["ab", "c"],
        "completions": ["xyz", ""],
        "completion_ids": [[1, 2], []],
        "answer": [3, 4],
        "mode": ["", ""],
    }
    expected = [[2 + 30 + 200 + 3000.5, 3.0], [1 + 0 + 0 + 4000.5, 0.0]]
    np.testing.assert_array_equal(function_rewards(functions, arguments), expected)
    with pytest.raises(UserError, match=r"the records' field 'day' cannot be given to a function: .*set"):
        function_rewards(functions, arguments | {"day": [{1}]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.py:cal", "own.py:cal: has no function 'cal'; there are call, later, refuse, start, told"),
        ("broken.py:call", "line 2: NameError: name 'nothing' is not defined"),
        ("missing.py:call", "there is no file"),
        ("slow.py:call", "takes longer than 0.5 s to be opened"),
        ("exakt", "'exakt' is neither FILE.py:NAME nor one of exact, last_number, phrases"),
        ("own.py", "own.py' is neither FILE.py:NAME nor"),
        ("exact", "missing a required argument: 'answer'; it is called with prompts, completions, wanted"),
        ("own.py:told", "missing a required argument: 'completion_ids'"),
    ],
)
def test_what_cannot_be_opened_is_said_before_it_is_called(file, name, message) -> None:
    (file.parent / "broken.py").write_text("import sys\nnothing()\n")
    (file.parent / "slow.py").write_text("import time\ntime.sleep(60)\n")
    name = f"{file.parent}/{name}" if ".py" in name else name
    with pytest.raises(UserError, match=rf"rewards.functions: .*{message}"):
        RewardFunction(RewardFunctionConfig(name, timeout_seconds=0.5)).check(("prompts", "completions", "wanted"))


def test_a_function_that_can_be_called_is_found_good(file) -> None:
    function = RewardFunction(RewardFunctionConfig(f"{file}:call"))
    function.check()
    function.check(("mode", "prompts", "completions"))
    np.testing.assert_array_equal(ask(function, "fine"), [1.0, 2.0, 1.0])


def test_bundled_functions_check_answers() -> None:
    exact, last = (RewardFunction(RewardFunctionConfig(name)) for name in ("exact", "last_number"))
    completions = [" 12\n", "so it is 3 + 9 = 12.", "1,012", [{"role": "assistant", "content": "12"}], "none"]
    arguments = {"prompts": [""] * 5, "completions": completions, "answer": ["12", "#### 12", 1012, "12", "12"]}
    np.testing.assert_array_equal(function_rewards([exact, last], arguments), [[1, 1], [0, 1], [0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"timeout_seconds": 0.0}, "rewards.timeout_seconds: 0.0 must be above 0 and finite"),
        ({"largest_reward": float("inf")}, "rewards.largest_reward: inf must be above 0 and finite"),
        ({"weight": float("nan")}, "rewards.weights: nan must be a number between -1e\\+08 and 1e\\+08"),
        ({"weight": -1e300}, "rewards.weights: -1e\\+300 must be a number between"),
        ({"largest_reward": 1e30}, "rewards.largest_reward: 1e\\+30 must be a number between"),
        ({"failures_allowed": -1}, "rewards.failures_allowed: -1 must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message) -> None:
    with pytest.raises(UserError, match=message):
        RewardFunctionConfig("exact", **setting)
