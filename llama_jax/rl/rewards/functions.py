"""Python functions as the source of rewards, each in a process of its own with bounds on time and memory."""

import inspect
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.core.arrays import Float
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.processes.guarded import GuardedProcess, Request
from llama_jax.rl.rewards import bundled
from llama_jax.rl.rewards.config import RewardFunctionConfig

BUNDLED = [name for name, value in vars(bundled).items() if inspect.isfunction(value) and name[0] != "_"]
"""Functions that come with llama_jax."""
_WORKER = Path(__file__).with_name("function_worker.py")
_BYTES_AN_ANSWER, _BYTES_A_REWARD = 4096, 512


class RewardFunction:
    """A function that is called with keywords `prompts`, `completions`, `completion_ids` and the other fields of the
    records, a list each, and gives a number for each completion, or None where it does not apply; it may be `async`.

    What it prints goes nowhere. Its process is started when first checked or called, and anew after it was killed.

    Raises:
        UserError: there is no such file, or no such function among those that come with llama_jax.
    """

    def __init__(self, config: RewardFunctionConfig) -> None:
        file, colon, self.name = config.function.rpartition(":")
        path = Path(file).expanduser().resolve() if colon else Path(bundled.__file__)
        if not colon and self.name not in BUNDLED:
            known = ", ".join(BUNDLED)
            raise UserError(f"rewards.functions: '{config.function}' is neither FILE.py:NAME nor one of {known}")
        if not path.is_file():
            raise UserError(f"rewards.functions: {config.function}: there is no file {path}")
        self.config = config
        self.counts: Counter[str] = Counter()
        """So far: calls that failed (`raised`, `too_slow`, `died`, `wrong_number`), rewards that cannot be used
        (`no_number`, `too_large`), and completions to which the function did not apply (`not_applicable`)."""
        self.problem = ""
        """What was wrong with the last call, in a line; empty if nothing was."""
        self._failures = 0
        opening = {"file": str(path), "function": self.name}
        self._process = GuardedProcess(
            _WORKER, Request(opening, config.timeout_seconds, config.memory_bytes, _BYTES_AN_ANSWER)
        )

    def check(self, names: Sequence[str] | None = None) -> None:
        """Open it, before anything else is done for nothing.

        Args:
            names: Of the arguments that it will be called with; None: they are not known yet.

        Raises:
            UserError: it cannot be opened, or not be called so.
        """
        config = self.config
        asked = {"names": None if names is None else list(names)}
        request = Request(asked, config.timeout_seconds, config.memory_bytes, _BYTES_AN_ANSWER)
        try:
            answer = self._process.ask(request)
        except TimeoutError:
            raise self._unopened(f"takes longer than {config.timeout_seconds:g} s to be opened") from None
        except EOFError:
            raise self._unopened("its process ended when it was opened; it may need more memory") from None
        if "unopened" in answer:
            raise self._unopened(answer["unopened"])

    def __call__(self, arguments: Mapping[str, Sequence[Any]]) -> Float[np.ndarray, "N"]:
        """The reward of each completion, NaN where there is none.

        Raises:
            UserError: the function cannot be opened.
            CannotGoOnError: more calls in a row failed than may.
        """
        count = len(arguments["completions"])
        self.problem = ""
        answer = self._asked(dict(arguments), count)
        rewards = np.full(count, np.nan, np.float32)
        if answer is not None:
            rewards[:] = [self._usable(number, value) for number, value in enumerate(answer)]
        self._failures = self._failures + 1 if self.problem else 0
        if self._failures > self.config.failures_allowed:
            in_a_row = f", the last of {self._failures} failures in a row" if self._failures > 1 else ""
            raise CannotGoOnError(
                f"reward function {self.config.function}: {self.problem}{in_a_row}; a run goes on after as many as "
                f"rewards.failures_allowed ({self.config.failures_allowed}) says"
            )
        return rewards

    def _asked(self, arguments: dict[str, Any], count: int) -> list[Any] | None:
        config = self.config
        most = _BYTES_AN_ANSWER + _BYTES_A_REWARD * count
        request = Request({"arguments": arguments}, config.timeout_seconds, config.memory_bytes, most)
        try:
            answer = self._process.ask(request)
        except TimeoutError:
            return self._failed("too_slow", f"takes longer than {config.timeout_seconds:g} s")
        except EOFError:
            return self._failed("died", "its process ended; it asks for too much memory or time, or ends it itself")
        if "unopened" in answer:
            raise self._unopened(answer["unopened"])
        if "error" in answer:
            return self._failed("raised", answer["error"])
        if (found := len(answer["rewards"])) != count:
            return self._failed("wrong_number", f"gives {found} rewards for {count} completions")
        return answer["rewards"]

    def _unopened(self, why: str) -> UserError:
        return UserError(f"rewards.functions: {self.config.function}: {why}")

    def _failed(self, kind: str, problem: str) -> None:
        self.counts[kind] += 1
        self.problem = problem

    def _usable(self, number: int, value: Any) -> float:
        """The reward, or NaN."""
        if value is None:
            self.counts["not_applicable"] += 1
            return math.nan
        if isinstance(value, str) or math.isnan(value):
            self.counts["no_number"] += 1
            self.problem = self.problem or f"gives {value} for completion {number}, which is no number"
            return math.nan
        if abs(value) > self.config.largest_reward:
            self.counts["too_large"] += 1
            limit = f"rewards.largest_reward {self.config.largest_reward:g}"
            self.problem = self.problem or f"gives {value:g} for completion {number}, beyond {limit}"
            return math.nan
        return value


def function_rewards(
    functions: Sequence[RewardFunction], arguments: Mapping[str, Sequence[Any]]
) -> Float[np.ndarray, "N F"]:
    """What all functions give, side by side. To be called by one process alone: functions may be random, or ask others.

    Raises:
        UserError: a field of the records cannot be given to a function, or one of these cannot be opened.
        CannotGoOnError: see `RewardFunction`.
    """
    for name, values in arguments.items():
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise UserError(f"rewards: the records' field '{name}' cannot be given to a function: {error}") from None
    with ThreadPoolExecutor(max(len(functions), 1)) as threads:
        return np.stack(list(threads.map(lambda function: function(arguments), functions)), axis=1)
