"""A run that learns from rewards goes back as a supervised one does: the prompts are left out at which updates were
skipped."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.core.config import MeshConfig, TrackingConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.recording.metrics import read_metrics
from llama_jax.core.sharding import replicated
from llama_jax.rl.config import GroupRolloutConfig, GrpoConfig
from llama_jax.rl.judging import Judge
from llama_jax.rl.loop import Parts, Progress
from llama_jax.rl.prompts import PromptData
from llama_jax.rl.rollouts import Sampler
from llama_jax.rl.running import _Run
from llama_jax.runs.methods import all_parameters
from llama_jax.runs.resuming import opened_run
from llama_jax.training.config import RollbackConfig, TrainingConfig

PROMPTS, LAST = 4, 8
BAD = {5 * PROMPTS, 6 * PROMPTS + 1}
"""Prompts of the rollouts 6 and 7 that make updates be skipped."""


class KilledError(Exception):
    """Stands for whatever ends a process."""


class Adding:
    """Adds up the numbers of the prompts that it learns from."""

    judge: Any = Mock(spec=Judge)

    def __init__(self, mesh: jax.sharding.Mesh, killed: int = 0) -> None:
        self._place, self._left = replicated(mesh), killed

    def fresh(self) -> dict[str, jax.Array]:
        return jax.device_put({"sum": jnp.int32(0), "skipped": jnp.int32(0)}, self._place)

    def targets(self) -> dict[str, Any]:
        number = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._place)
        return {"params": {"sum": number, "skipped": number}}

    def items(self, state: dict[str, jax.Array]) -> dict[str, Any]:
        return {"params": state}

    def restored(self, items: dict[str, Any], progress: Progress) -> dict[str, jax.Array]:
        return items["params"]

    def result(self, state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return state

    def iterate(self, parts: Parts, state: dict[str, jax.Array], progress: Progress) -> tuple[Any, Progress, Any]:
        self._left -= 1
        if self._left == 0:
            raise KilledError
        asked = range(progress.prompts, progress.prompts + PROMPTS)
        name, more = ("skipped", 1) if BAD & {*asked} else ("sum", sum(asked))
        state, progress = {**state, name: state[name] + more}, progress.after(PROMPTS, 10)
        record = {"step": progress.iteration, "sum": int(state["sum"]), "skipped_updates": int(state["skipped"])}
        return state, progress, record


class Toy(_Run):
    """A run whose learner needs no model."""

    def __init__(self, config: GrpoConfig, run: Any, killed: int) -> None:
        self._config, self._run, self._stop_ids, self._hashes = config, run, (), {}
        self._learner = Adding(jax.sharding.get_mesh(), killed)
        self._data: Any = Mock(spec=PromptData, fingerprint="prompts", held_out=())
        self._start: Any = Mock(files={"model/config.json": b"{}"}, base=None)
        self._method: Any = all_parameters(None)

    def _parts(self, params: Any, stop_ids: Any) -> Parts:
        return Parts(self._config, self._data, Mock(spec=Sampler), Mock(spec=Judge), self._run.say)

    def _say_result(self, progress: Progress, after: list[np.ndarray]) -> None:
        """There is no verdict."""


def learn(path: Path, killed: int = 0, skipped_updates: int = 2) -> list[dict[str, Any]]:
    """Start the run; returns what it records."""
    rollback = RollbackConfig(skipped_updates=skipped_updates, window=2, steps_before=0, batches=3)
    config = GrpoConfig(
        run_dir=str(path),
        rollout=GroupRolloutConfig(prompts=PROMPTS),
        training=TrainingConfig(steps=LAST, spike_sigma=0.0, evaluate_every=100, rollback=rollback),
        checkpoints=CheckpointConfig(every=2),
        tracking=TrackingConfig(tensorboard=False),
    )
    with opened_run(config, "grpo") as run, jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        Toy(config, run, killed).live()
    times = ("goodput", "wall_seconds", "time")
    return [{name: each[name] for name in each if name not in times} for each in read_metrics(path / "metrics.jsonl")]


@pytest.mark.slow
def test_the_prompts_of_skipped_updates_are_left_out(tmp_path: Path) -> None:
    """Rollouts 6 and 7 are bad: back to iteration 4, and after 5 three rollouts are left out, 6 to 8."""
    whole = learn(tmp_path / "whole")
    asked = [number for rollout in (1, 2, 3, 4, 5, 9, 10, 11) for number in range((rollout - 1) * 4, rollout * 4)]
    assert [record["sum"] for record in whole] == [sum(asked[: 4 * step]) for step in range(1, LAST + 1)]
    assert [record.get("left_out_batches", 0) for record in whole] == [0, 0, 0, 0, 0, 3, 3, 3]
    assert whole[-1]["skipped_updates"] == 0 and whole[-1]["rollbacks"] == 1
    with pytest.raises(KilledError):
        learn(tmp_path / "killed", killed=9)
    assert learn(tmp_path / "killed") == whole


@pytest.mark.slow
def test_without_it_the_run_goes_on_past_what_it_skipped(tmp_path: Path) -> None:
    assert learn(tmp_path, skipped_updates=0)[-1]["skipped_updates"] == 2
